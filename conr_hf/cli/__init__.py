"""The command line, `conr-hf`."""

from conr_hf.cli.main import main

__all__ = ["main"]
