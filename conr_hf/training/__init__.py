"""`ConRTrainer` and the parts it is composed of."""
