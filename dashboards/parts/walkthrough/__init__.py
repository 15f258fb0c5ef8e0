"""The walk through the model, in its parts."""
