"""Tests run on two processes (`-n 2`), so each keeps to one core."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
