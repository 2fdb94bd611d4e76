"""Read the pinned versions of requirements/."""

import re
from pathlib import Path
from typing import Dict

REQUIREMENTS = Path(__file__).resolve().parents[2] / 'requirements'


def read_pins(name: str) -> Dict[str, str]:
    """Return the {name: version} of a list in requirements/; all else fails."""
    pins = {}
    for line in (REQUIREMENTS / name).read_text(encoding='utf-8').splitlines():
        if line.strip() and not line.startswith('#'):
            pin = re.fullmatch(r'([a-z0-9.-]+)==([\w.+!-]+)', line)
            assert pin, f'{name}: {line!r}'
            pins[pin.group(1)] = pin.group(2)
    return pins
