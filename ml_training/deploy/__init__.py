"""Turning a trained network into one file that answers."""
