"""`conr-hf demo`: a page that predicts, and its export as a Space."""
