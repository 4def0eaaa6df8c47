"""Tell what a model file is: the door behind `python ml_training/inspect_model.py` and `digits inspect`."""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a script: Python put this folder on the path, where data/ and utils/ hide others' modules
    _here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [os.path.dirname(_here), *(p for p in sys.path if os.path.realpath(p) != _here)]

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence

from digit_detector.cli.parser import OneLineParser
from digit_detector.cli.program import program
from digit_detector.errors import ModelError
from digit_detector.inspection import Graph, Inspection, inspect_model
from digit_detector.labels import PIPELINE_TITLES
from digit_detector.model_file import CHECKSUM_KEY, FORMAT_KEY

WITHOUT_ONNX = "operators, parameters and multiply-adds are not told: they need the onnx package (pip install onnx)"


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Print what one file is; returns the exit code."""
    parser = OneLineParser(description="What does a model file say of itself, and what is it made of?")
    parser.add_argument("file", metavar="FILE", help="a model.onnx of this program")
    parser.add_argument("--json", action="store_true", help="print an object")
    args = parser.parse_args(argv)
    found = inspect_model(args.file)
    print(json.dumps(dataclasses.asdict(found), indent=2) if args.json else "\n".join(told(found)))
    if not found.intact:
        raise ModelError(
            f"{found.file} was changed after its export: its checksum is not right; copy or export it again"
        )
    return 0


def told(found: Inspection) -> Iterator[str]:
    """All of it in lines for people."""
    said = found.metadata
    spots = said[FORMAT_KEY].startswith("spotter")
    rows = {
        "file": f"{found.file}, {found.size:,} bytes, {_seal(found)}",
        **(_spotter(found) if spots else _classifier(found)),
        "made by": f"version {said.get('version', '?')}, commit {said.get('git_commit', '?')}, "
        f"exported {said.get('created', '?')}, format {said[FORMAT_KEY]}",
        **(_made_of(found.graph, "32 ms" if spots else "a clip") if found.graph else {"graph": WITHOUT_ONNX}),
    }
    width = max(map(len, rows))
    yield from (f"{name:<{width}}  {text}" for name, text in rows.items())


def _classifier(found: Inspection) -> dict[str, str]:
    """What one that answers for a second says of itself."""
    said = found.metadata
    return {
        "model": f"{said.get('pipeline', '?')}: {PIPELINE_TITLES.get(said.get('pipeline', ''), 'unknown here')}",
        "precision": " ".join((found.precision, f"({said['calibration']})" if said.get("calibration") else "")).strip(),
        "takes": _named(found.inputs) + f": {said.get('window', '?')} samples at {said.get('sample_rate', '?')} Hz",
        "gives": _named(found.outputs),
        "words": said.get("labels", "?").replace(",", " "),
        "learnt from": f"{said.get('data', '?')} ({said.get('speech', '?')})",
        "data hash": said.get("data_hash", "?"),
        "recordings": said.get("recordings_hash", said.get("data_hash", "?")),
        "not a digit": said.get("negatives") or "never learnt: its digit score means nothing",
        "accuracy": _accuracy(found),
        "training": f"seed {said.get('seed', '?')}, epoch {said.get('epoch', 'unknown')}, "
        f"temperature {said.get('temperature', '1')}",
    }


def _spotter(found: Inspection) -> dict[str, str]:
    """What one that hears live sound, block by block, says of itself."""
    said = found.metadata
    return {
        "model": "spotter: which digit has just ended, every 16 ms of live sound",
        "takes": _named(found.inputs) + f" at {said.get('sample_rate', '?')} Hz",
        "gives": _named(found.outputs),
        "words": said.get("labels", "?").replace(",", " "),
        "dilations": said.get("dilations", "?").replace(",", " "),
        "learnt from": said.get("data", "?"),
        "data hash": said.get("data_hash", "?"),
        "training": f"seed {said.get('seed', '?')}, {said.get('steps', '?')} steps",
    }


def _seal(found: Inspection) -> str:
    if not found.sealed:
        return "without a checksum"
    return f"checksum {'intact' if found.intact else 'NOT that of its export'} ({found.metadata[CHECKSUM_KEY][:12]})"


def _named(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in values.items())


def _accuracy(found: Inspection) -> str:
    said = found.metadata
    try:
        share = f"{100 * float(said['accuracy']):.2f} %"
    except (KeyError, ValueError):
        return "unknown"
    return f"{share} of {said.get('tested_on', 'the test part')} (split {said.get('split', '?')})"


def _made_of(graph: Graph, heard: str) -> dict[str, str]:
    kept, sums = sum(graph.numbers.values()), graph.multiply_adds
    by_type = [f"{_share(count, kept)} {kind}" for kind, count in graph.numbers.items()]
    by_operator = [f"{count} {name}" for name, count in graph.operators.items()]
    left_out = f"; {graph.uncounted} layers of unknown shape left out" if graph.uncounted else ""
    return {
        "opset": str(graph.opset),
        "operators": f"{sum(graph.operators.values())}: {', '.join(by_operator)}",
        "parameters": f"{kept:,} with the tables of its features: {', '.join(by_type)}",
        "multiply-adds": f"{sums:,} {heard}, {_share(graph.int8_multiply_adds, sums)} in int8{left_out}",
    }


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({100 * part / max(1, whole):.1f} %)"


if __name__ == "__main__":
    sys.exit(main())
