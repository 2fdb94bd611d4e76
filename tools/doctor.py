"""Find what is wrong with this environment, and the command that mends it.

    python tools/doctor.py [--quick] [--json]

Only a start: the code is the package `mmlit_doctor`, which lies beside `mmlit` in the
repository and where both are installed, so that the command `mmlit-doctor` has it, too.
Exit status 1 with a fault, 0 without one; advice does not count.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# A copy of this file elsewhere (mim's `.mim/tools`) finds the one that is installed.
if (ROOT / 'mmlit_doctor').is_dir():
    sys.path.insert(0, str(ROOT))

from mmlit_doctor.cli import main  # noqa: E402

if __name__ == '__main__':
    sys.exit(main())
