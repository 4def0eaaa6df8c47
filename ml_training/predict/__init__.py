"""Prediction of whole folders into CSV, JSON Lines or Parquet, which goes on where it was interrupted."""
