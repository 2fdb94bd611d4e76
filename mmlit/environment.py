"""Check that torch, mmengine and mmcv work before mmlit imports them.

The checks are the doctor's (`mmlit_doctor`, in the same distribution).
"""

import multiprocessing
import os
import warnings

from mmlit_doctor import check_imports
from mmlit_doctor.check_installed import check_pkg_resources
from mmlit_doctor.findings import Fault
from mmlit_doctor.install import find_untested

from .errors import UnusableEnvironmentError
from .version import __version__


def check_environment() -> None:
    """Raise if torch, mmengine or mmcv with compiled ops cannot be used here.

    Raises:
        UnusableEnvironmentError: one sentence, with the command that mends it.

    Warns:
        UserWarning: once, if versions differ from those mmlit was tested with.
    """
    try:
        check_imports.check_import('torch')
        # Before mmengine is imported: some of its releases fail on this at import.
        check_pkg_resources()
        check_imports.check_import('mmengine')
        check_imports.check_mmcv()
        check_imports.check_ops()
    except Fault as fault:
        raise UnusableEnvironmentError(fault.seen, fault.mend) from None
    _warn_untested()


def _warn_untested() -> None:
    """Warn of untested versions, in the first process of a run only."""
    if multiprocessing.parent_process() or os.environ.get('RANK', '0') != '0':
        return
    other = find_untested()
    if other:
        warnings.warn(
            f'mmlit {__version__} was not tested with {", ".join(other)}; other '
            'versions mostly work, so this is only a hint where to look if one fails.',
            UserWarning,
            stacklevel=2,
        )
