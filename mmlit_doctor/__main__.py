"""Run `mmlit-doctor` as `python -m mmlit_doctor`."""

import sys

from mmlit_doctor.cli import main

sys.exit(main())
