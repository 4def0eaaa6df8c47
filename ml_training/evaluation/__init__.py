"""Scoring models and counting what they got right."""
