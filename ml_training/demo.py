"""Entry point: the whole chain in small, and what passed.

python ml_training/demo.py             on real recordings, downloaded if there are none yet
python ml_training/demo.py --synthetic on synthesised speech
"""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a script: Python put this folder on the path, where data/ and utils/ hide others' modules
    _here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [os.path.dirname(_here), *(p for p in sys.path if os.path.realpath(p) != _here)]

from collections.abc import Sequence

from digit_detector.cli.parser import OneLineParser
from digit_detector.cli.program import program, require


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; returns 0 when every step passed, 1 otherwise."""
    parser = OneLineParser(description="Run the whole chain small, step by step, and show what passed.")
    parser.add_argument("--synthetic", action="store_true", help="use synthesised speech, no recordings")
    parser.add_argument("--output", default="demo_output", help="folder for everything it writes")
    args = parser.parse_args(argv)
    require("the demo", ("torch",))
    from ml_training.training.demo_steps import run_demo

    return run_demo(args.output, synthetic=args.synthetic)


if __name__ == "__main__":
    sys.exit(main())
