"""`python -m mmlit_doctor`: the same as `mmlit-doctor`."""

import sys

from mmlit_doctor.cli import main

sys.exit(main())
