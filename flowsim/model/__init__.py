"""The model: parts of a gradient flow, and the flow that they make."""
