"""Find what is wrong with an environment, and the command that mends it.

Standard library only, and no import of mmlit: the doctor works where `import mmlit`
refuses, and that in turn runs a few of these checks.

cli.py goes through the table of checks.py and reports, worker.py runs each check in
another process, and what they do is in check_*.py; install.py knows packages, versions
and the commands that install them.
"""

import sys

if sys.version_info < (3, 8):
    sys.exit(
        f'fault: Python {sys.version.split()[0]} is too old, mmlit needs 3.8 or newer: '
        'python3.11 -m venv .venv && . .venv/bin/activate'
    )
