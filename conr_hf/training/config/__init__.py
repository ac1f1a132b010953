"""Settings of a run: declared, checked, and derived from the training labels."""
