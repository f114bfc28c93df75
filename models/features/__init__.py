"""Kernels of features over an entity's events and their labels."""
