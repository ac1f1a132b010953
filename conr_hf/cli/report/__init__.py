"""`conr-hf report`: what a finished run got right and wrong."""
