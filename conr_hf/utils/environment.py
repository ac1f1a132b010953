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
    """Versions of Python and of the packages that a run depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def command_line(arguments: Sequence[str]) -> str:
    """The command line, to be typed again; tokens are replaced by `...`."""
    pairs = zip(["", *arguments], arguments, strict=False)
    words = ["..." if re.fullmatch(r"--[\w-]+[_-]token", before) else word for before, word in pairs]
    return shlex.join(["conr-hf", *(re.sub(r"(--[\w-]+[_-]token=).*", r"\1...", word) for word in words)])


def current_device() -> torch.device:
    """The accelerator, or the CPU where there is none."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def hardware() -> str:
    """The machine in words: its accelerators, or its processor cores."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    device = current_device()
    return f"{os.cpu_count()} CPU cores, {platform.machine()}" if device.type == "cpu" else str(device)


def peak_memory() -> int:
    """Peak memory of this process, in bytes: of the GPU if there is one, else of the machine."""
    if sys.platform == "win32":  # has no such figure
        return 0
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
