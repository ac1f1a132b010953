"""What a trained model is used for: evaluation, prediction, intervals, features, export."""
