"""Callbacks of `ConRTrainer`, in the order in which it registers them: epoch, interrupt, NaN guard, objective, EMA."""
