"""What is wrong with this environment, and the command that mends it.

A package beside `mmlit` and not in it: importing anything of `mmlit` runs the checks of
`import mmlit`, and the doctor has to work exactly where those refuse. Standard library
only, like the two files of mmlit that it loads by path (surroundings.py).

In the order of the data: checks.py lists the checks, cli.py goes through them and
reports, worker.py runs each in another process, and what they do is in installed.py,
imports.py and runs.py.
"""

import sys

if sys.version_info < (3, 8):
    sys.exit(
        f'fault: Python {sys.version.split()[0]} is too old, mmlit needs 3.8 or newer: '
        'python3.11 -m venv .venv && . .venv/bin/activate'
    )
