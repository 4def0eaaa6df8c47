"""Export, quantization and versions of trained networks."""
