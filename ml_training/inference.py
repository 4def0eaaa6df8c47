"""Predict which digit is spoken in recordings.

    from ml_training.inference import load_classifier
    classifier = load_classifier("models", "mfcc")
    result = classifier.predict("audio.wav")

Needs numpy, soundfile, soxr and onnxruntime, and never imports torch. As a program:
python ml_training/inference.py --model_dir models --pipeline mfcc --audio audio.wav
"""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a script: Python put this folder on the path, where data/ and utils/ hide others' modules
    _here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [os.path.dirname(_here), *(p for p in sys.path if os.path.realpath(p) != _here)]

from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from digit_detector.audio import ENCODINGS
from digit_detector.classifier import DigitClassifier, load_classifier, model_file
from digit_detector.cli.answers import format_prediction, print_json
from digit_detector.cli.parser import OneLineParser
from digit_detector.cli.program import program, silent_libraries
from digit_detector.cli.text import escape_controls
from digit_detector.examples import EXAMPLES, example_recording
from digit_detector.labels import FILE_PRECISIONS, FP32, TRAINED
from digit_detector.labels import PRETRAINED as PRETRAINED
from digit_detector.selection import choose_model
from ml_training.predict.arguments import ONLY_WITH_OUT, add_flags, default_decoders


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Print the digit in each of the files, or write a table; returns the exit code."""
    parser = OneLineParser(description="Predict the digit that is spoken in recordings.")
    parser.add_argument("files", nargs="*", metavar="FILE", default=SUPPRESS, help="recordings")
    parser.add_argument("--audio", nargs="+", action="extend", metavar="FILE", default=SUPPRESS, help="more of them")
    parser.add_argument(
        "--model_dir", "--models_dir", default=SUPPRESS, metavar="DIR",
        help=f"folder of models; {PRETRAINED}: those that ship (default: the more accurate of these and {TRAINED})",
    )  # fmt: skip
    parser.add_argument(
        "--pipeline", metavar="NAME", default=SUPPRESS, help="which of them (default: the most accurate)"
    )
    parser.add_argument(
        "--version", type=int, default=None, metavar="N", help="a version of your own model (default: the promoted one)"
    )
    parser.add_argument(
        "--example", nargs="?", const=EXAMPLES[0], choices=EXAMPLES, default=SUPPRESS,
        help=f"answer a recording that comes with the package (alone: {EXAMPLES[0]})",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--precision", choices=FILE_PRECISIONS, default=FP32, help="which file of a model answers")
    parser.add_argument(
        "--json", action="store_true", default=SUPPRESS, help="an object for one file, a list for several"
    )
    parser.add_argument(
        "--encoding", choices=ENCODINGS, default=None, help="of files without a header (default: by their suffix)"
    )
    parser.add_argument(
        "--rate", type=int, default=None, metavar="HZ", help="of files without a header (default: 8000)"
    )
    add_flags(parser)
    args = vars(parser.parse_args(argv))
    files: list[str] = [*args.get("files", []), *args.get("audio", [])]
    if "example" in args:
        files.append(str(example_recording(args["example"])))
    if not files:
        parser.error("name at least one recording, or try --example")
    encoding, rate = args["encoding"], args["rate"]
    if "out" in args and (encoding is not None or rate is not None):
        parser.error("--encoding and --rate are for single files; in tables the suffix selects it (.ul, .al, .gsm)")
    if "out" in args and "json" in args:
        parser.error("--json is for single files: name a table that ends in .jsonl")
    if "out" not in args and (flags := sorted(args.keys() & ONLY_WITH_OUT)):
        parser.error(f"--{', --'.join(flags)}: name a table with --out")
    precision: str = args["precision"]
    version: int | None = args["version"]
    choice = choose_model(model_file, args.get("model_dir"), args.get("pipeline"), precision, version)
    name = choice.pipeline if precision == FP32 else f"{choice.pipeline} ({precision})"
    model = f"the {name} that ships" if choice.model_dir == PRETRAINED else f"your own {name} in {choice.model_dir}"
    model += "" if version is None else f", version {version}"
    model += f" ({choice.reason})" if choice.reason else ""
    classifier = load_classifier(choice.model_dir, choice.pipeline, args["threads"], precision, version)
    if "out" in args:
        return predict_table(classifier, model, files, args)
    with silent_libraries():
        entries = classifier.batch_predict(files, sample_rate=rate, encoding=encoding)
    errors = [entry["error"] for entry in entries if "error" in entry]
    if "json" in args:
        print_json(entries)
    else:
        for entry in entries:
            if "error" not in entry:
                print(format_prediction(entry))
        if len(errors) < len(entries):
            print(f"answered by {model}", file=sys.stderr)
    for error in errors:
        print(f"error: {escape_controls(error)}", file=sys.stderr)
    return 1 if errors else 0


def predict_table(classifier: DigitClassifier, model: str, files: list[str], args: Mapping[str, Any]) -> int:
    """Predict files and folders into the table of `--out`; returns the exit code."""
    from ml_training.predict.batching import predict_recordings
    from ml_training.predict.folder import Listing, predict_folder

    out, modes = Path(args["out"]), {"resume": "resume" in args, "overwrite": "overwrite" in args}
    if "engine" in args:
        from ml_training.scale.prediction import predict_on_cluster

        workers, address = args.get("workers", 2), args.get("ray_address", "")
        return predict_on_cluster(classifier, model, files, out, workers, address, **modes)
    decoders = args.get("decoders") or default_decoders()
    predict = partial(predict_recordings, model=classifier, batch_size=args.get("batch_size"), decoders=decoders)
    return predict_folder(classifier, model, Listing(files), out, predict, **modes)


if __name__ == "__main__":
    sys.exit(main())
