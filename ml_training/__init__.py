"""Train, evaluate, export and tune small spoken-digit recognisers; digit_detector is what answers.

Importing this package is cheap, and `ml_training.inference` never imports torch.
"""

from digit_detector import __version__

__all__ = ["__version__"]
