"""Uses of a trained model: evaluation, prediction, intervals, features, export."""
