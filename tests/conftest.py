"""Tests run on two processes (`-n 2`), so each keeps to one core; what they cache is not the user's."""

import gc
import os
import shutil
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

_home, _own = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser(), tempfile.TemporaryDirectory()
os.environ.setdefault("HF_HUB_CACHE", str(_home / "hub"))  # what is there may be read
os.environ.setdefault("HF_DATASETS_CACHE", str(_home / "datasets"))
os.environ["HF_HOME"] = _own.name


@pytest.fixture(autouse=True)
def _no_checked_images():
    """No test takes an image as good since another has read it."""
    shutil.rmtree(Path(_own.name, "conr_hf"), ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def _little_garbage_to_look_for():
    """Each training begins with a garbage collection, which would take longer than it if torch were looked through."""
    gc.collect()
    gc.freeze()
