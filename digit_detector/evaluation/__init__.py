"""Streams of known content, what is found in them, and thresholds that follow from it."""
