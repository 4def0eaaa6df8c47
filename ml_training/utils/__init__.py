"""Logging, plots and the HTML report."""
