"""`conr-hf compare`: methods and seeds beside each other."""
