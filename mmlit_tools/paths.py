"""Find configs and outputs, in a checkout or for an installed package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

_PARENT = Path(__file__).resolve().parents[1]
_IN_CHECKOUT = (_PARENT / 'model-index.yml').is_file()

#: The folder with `configs/` and `tools/`: the checkout, or `.mim` of the package.
ASSETS = _PARENT if _IN_CHECKOUT else Path(find_spec('mmlit').origin).parent / '.mim'
#: The folder that outputs go to by default: the checkout, or the current one.
OUTPUTS = _PARENT if _IN_CHECKOUT else Path()
