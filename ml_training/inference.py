"""Answer: which digit is said in this audio?

    from ml_training.inference import load_classifier
    classifier = load_classifier("models", "mfcc")
    result = classifier.predict("audio.wav")

Needs numpy, soundfile, soxr and onnxruntime, and never imports torch. Also a program:
python ml_training/inference.py --model_dir models --pipeline mfcc --audio audio.wav
"""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a script: Python put this folder on the path, where data/ and utils/ hide others' modules
    _here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [os.path.dirname(_here), *(p for p in sys.path if os.path.realpath(p) != _here)]

from argparse import SUPPRESS
from collections.abc import Sequence

from digit_detector.audio import ENCODINGS
from digit_detector.classifier import load_classifier, model_file
from digit_detector.cli.answers import print_json, shown
from digit_detector.cli.parser import OneLineParser
from digit_detector.cli.program import program, silent_libraries
from digit_detector.cli.text import escape_controls
from digit_detector.examples import EXAMPLES, example_recording
from digit_detector.labels import FILE_PRECISIONS, FP32, TRAINED
from digit_detector.labels import PRETRAINED as PRETRAINED
from digit_detector.selection import choose_model
from ml_training.predict.flags import FLAGS, add_flags

# --- the program ---------------------------------------------------------------------------------


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Print which digit is said in each of the files; returns the exit code."""
    parser = OneLineParser(description="Which digit is said in these recordings?")
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
    if args.keys() & FLAGS and (encoding is not None or rate is not None):
        parser.error(
            "--encoding and --rate are for files that are named: in tables the suffix says it (.ul, .al, .gsm)"
        )
    precision: str = args["precision"]
    version: int | None = args["version"]
    choice = choose_model(model_file, args.get("model_dir"), args.get("pipeline"), precision, version)
    who = choice.pipeline if precision == FP32 else f"{choice.pipeline} ({precision})"
    told = f"the {who} that ships" if choice.model_dir == PRETRAINED else f"your own {who} in {choice.model_dir}"
    told += "" if version is None else f", version {version}"
    told += f" ({choice.reason})" if choice.reason else ""
    classifier = load_classifier(choice.model_dir, choice.pipeline, args["threads"], precision, version)
    if args.keys() & FLAGS:
        from ml_training.predict.command import request_of, write_table

        request = request_of(files, args)
        if "engine" in args:
            from ml_training.scale.predicting import on_cluster

            with on_cluster(request, classifier, args.get("workers", 2), args.get("ray_address", "")) as request:
                return write_table(classifier, request, told)
        return write_table(classifier, request, told)
    with silent_libraries():
        entries = classifier.batch_predict(files, sample_rate=rate, encoding=encoding)
    bad = [entry["error"] for entry in entries if "error" in entry]
    if "json" in args:
        print_json(entries)
    else:
        for entry in entries:
            if "error" not in entry:
                print(shown(entry))
        if len(bad) < len(entries):
            print(f"answered by {told}", file=sys.stderr)
    for error_line in bad:
        print(f"error: {escape_controls(error_line)}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
