"""Versions, hardware and memory of a run, and the command that started it."""

import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import torch

PACKAGES = ("conr-hf", "torch", "torchvision", "transformers", "accelerate", "datasets", "timm", "huggingface_hub")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a run stands on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def command_line(arguments: Sequence[str]) -> str:
    """The command line as one would type it again; tokens are not told."""
    pairs = zip(["", *arguments], arguments, strict=False)
    told = ["..." if re.fullmatch(r"--[\w-]+[_-]token", before) else word for before, word in pairs]
    return shlex.join(["conr-hf", *(re.sub(r"(--[\w-]+[_-]token=).*", r"\1...", word) for word in told)])


def hardware() -> str:
    """The machine in words: its accelerators, or its processor cores."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    if torch.accelerator.is_available():
        return str(torch.accelerator.current_accelerator())
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"


def peak_memory() -> int:
    """The most memory that this process has held, in bytes: of the GPU if there is one, else of the machine."""
    if sys.platform == "win32":  # which does not tell
        return 0
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
