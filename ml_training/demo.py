"""The whole chain, small: recordings, three pipelines, an interruption, answers, plots; then what passed.

python ml_training/demo.py             on real recordings, downloaded if there are none yet
python ml_training/demo.py --synthetic on synthesised speech
"""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a script: Python put this folder on the path, where data/ and utils/ hide others' modules
    _here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [os.path.dirname(_here), *(p for p in sys.path if os.path.realpath(p) != _here)]

import importlib.util
from collections.abc import Sequence

from ml_training.config import OneLineParser
from ml_training.errors import DigitError, MissingExtraError
from ml_training.utils.program import program


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; returns 0 when every step passed, 1 otherwise."""
    parser = OneLineParser(description="Run the whole chain small, step by step, and show what passed.")
    parser.add_argument("--synthetic", action="store_true", help="use synthesised speech, no recordings")
    parser.add_argument("--output", default="demo_output", help="folder for everything it writes")
    args = parser.parse_args(argv)
    try:
        if importlib.util.find_spec("torch") is None:
            raise MissingExtraError("the demo", "train")
        from ml_training.training.demonstration import demonstrate
        from ml_training.training.signals import Interrupted
    except DigitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    try:
        return demonstrate(args.output, synthetic=args.synthetic)
    except Interrupted as stopped:
        return stopped.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
