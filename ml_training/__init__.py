"""Train, evaluate, export and use small spoken-digit recognisers.

Importing this package is cheap: only `ml_training.inference` is needed to answer, and it never
imports torch.
"""

import os

__version__ = "0.1.0"

# onnxruntime's own builds keep an identifier of the machine and report their use to its maker, from the moment they
# are imported. Nothing here does that unasked; whoever wants it sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
