"""Training, search and prediction on a Ray cluster."""
