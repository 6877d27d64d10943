"""Integration of flows in time, steps of an optimizer, and sweeps."""
