"""Tests run on two processes (`-n 2`), so each keeps to one core."""

import gc
import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported


@pytest.fixture(scope="module", autouse=True)
def _little_garbage_to_look_for():
    """Each training begins with a garbage collection, which would take longer than it if torch were looked through."""
    gc.collect()
    gc.freeze()
