"""The model: a gradient flow and its parts."""
