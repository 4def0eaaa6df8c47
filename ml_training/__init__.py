"""Train, evaluate, export and use small spoken-digit recognisers.

Importing this package is cheap: only `ml_training.inference` is needed to answer, and it never
imports torch.
"""

__version__ = "0.1.0"
