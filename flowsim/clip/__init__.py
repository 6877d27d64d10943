"""The bridge to training real CLIP models: data, models, training and its measurement."""
