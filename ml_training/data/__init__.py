"""Corpora: finding, reading, splitting, synthesising and augmenting recordings."""
