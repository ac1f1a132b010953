"""`conr-hf compare`: methods and seeds compared."""
