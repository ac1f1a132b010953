"""Data sets for imbalanced regression."""
