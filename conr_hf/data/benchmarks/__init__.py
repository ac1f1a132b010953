"""Benchmarks of imbalanced regression, by name."""

from conr_hf.data.benchmarks.loading import benchmark_of, load_benchmark

__all__ = ["benchmark_of", "load_benchmark"]
