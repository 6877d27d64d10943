"""Gradient flow of contrastive losses."""
