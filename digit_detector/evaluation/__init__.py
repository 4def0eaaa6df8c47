"""Test streams of known content, scoring of detections, choice of thresholds."""
