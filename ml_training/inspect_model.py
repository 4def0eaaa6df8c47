"""Show metadata and graph of a model file: `python ml_training/inspect_model.py` and `digits inspect`."""

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

WITHOUT_ONNX = "operators, parameters and multiply-adds need the onnx package (pip install onnx)"


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Print one model file; returns the exit code."""
    parser = OneLineParser(description="Show the metadata and the graph of a model file.")
    parser.add_argument("file", metavar="FILE", help="a model.onnx of this program")
    parser.add_argument("--json", action="store_true", help="print an object")
    args = parser.parse_args(argv)
    found = inspect_model(args.file)
    print(json.dumps(dataclasses.asdict(found), indent=2) if args.json else "\n".join(format_inspection(found)))
    if not found.intact:
        raise ModelError(
            f"{found.file} was changed after its export: its checksum is not right; copy or export it again"
        )
    return 0


def format_inspection(found: Inspection) -> Iterator[str]:
    """One aligned line per property."""
    metadata = {key: value for key, value in found.metadata.items() if value}
    is_acoustic = metadata[FORMAT_KEY].startswith("acoustic")
    checksum = f"checksum {'intact' if found.intact else 'NOT that of its export'}"
    sealed = f"{checksum} ({metadata[CHECKSUM_KEY][:12]})" if found.sealed else "without a checksum"

    def get(key: str, default: str = "?") -> str:
        return metadata.get(key, default)

    rows = {"file": f"{found.file}, {found.size:,} bytes, {sealed}"}
    takes, gives = (", ".join(f"{n} {t}" for n, t in named.items()) for named in (found.inputs, found.outputs))
    words = get("labels").replace(",", " ")
    if is_acoustic:
        rows |= {
            "model": "acoustic model of live detection: posteriors of words and speech activity, every 32 ms",
            "takes": f"{takes} at {get('sample_rate')} Hz", "gives": gives,
            "words": get("tokens").replace(",", " ").strip(),
            "trained on": get("data"), "data hash": get("data_hash"),
            "training": f"seed {get('seed')}, {get('steps')} steps",
        }  # fmt: skip
    else:
        rows |= {
            "model": f"{get('pipeline')}: {PIPELINE_TITLES.get(get('pipeline'), 'unknown')}",
            "precision": found.precision + (f" ({get('calibration')})" if "calibration" in metadata else ""),
            "takes": f"{takes}: {get('window')} samples at {get('sample_rate')} Hz", "gives": gives, "words": words,
            "trained on": f"{get('data')} ({get('speech')})", "data hash": get("data_hash"),
            "recordings": get("recordings_hash", get("data_hash")),
            "not a digit": get("negatives", "not trained: its digit score means nothing"),
            "accuracy": _format_accuracy(metadata),
            "training": f"seed {get('seed')}, epoch {get('epoch', 'unknown')}, temperature {get('temperature', '1')}",
        }  # fmt: skip
    rows["made by"] = f"version {get('version')}, commit {get('git_commit')}, exported {get('created')}, format "
    rows["made by"] += metadata[FORMAT_KEY]
    unit = "32 ms" if is_acoustic else "a clip"
    rows |= _format_graph(found.graph, unit) if found.graph else {"graph": WITHOUT_ONNX}
    width = max(map(len, rows))
    yield from (f"{name:<{width}}  {text}" for name, text in rows.items())


def _format_accuracy(metadata: Mapping[str, str]) -> str:
    try:
        share = f"{100 * float(metadata['accuracy']):.2f} %"
    except (KeyError, ValueError):
        return "unknown"
    return f"{share} of {metadata.get('tested_on', 'the test part')} (split {metadata.get('split', '?')})"


def _format_graph(graph: Graph, unit: str) -> dict[str, str]:
    parameters, sums = sum(graph.numbers.values()), graph.multiply_adds
    by_type = [f"{_format_share(count, parameters)} {kind}" for kind, count in graph.numbers.items()]
    by_operator = [f"{count} {name}" for name, count in graph.operators.items()]
    left_out = f"; {graph.uncounted} layers of unknown shape left out" if graph.uncounted else ""
    return {
        "opset": str(graph.opset),
        "operators": f"{sum(graph.operators.values())}: {', '.join(by_operator)}",
        "parameters": f"{parameters:,} with the constants of its features: {', '.join(by_type)}",
        "multiply-adds": f"{sums:,} {unit}, {_format_share(graph.int8_multiply_adds, sums)} in int8{left_out}",
    }


def _format_share(part: int, whole: int) -> str:
    return f"{part:,} ({100 * part / max(1, whole):.1f} %)"


if __name__ == "__main__":
    sys.exit(main())
