"""Compare int8 with fp32 for each trained model: size, time, accuracy and agreement.

    python benchmarks/int8.py --models_dir models [--folder DIR ...] [--methods] [--runs 500]

Reads each best_model.pt of --models_dir and its training data (their folders as in the checkpoint, or --data_dir,
--extra_digits_dir, --non_digit_dir), exports both files as `digits export` does, and runs them alternately on the
validation part and on each --folder of labelled clips. One clip at a time, one thread, next to a reference, the product
of two 512 x 512 float32 matrices. --methods adds a table of every form and method of quantization. Its figures serve
decisions, so recordings kept for evaluation must not be given.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from digit_detector.labels import PIPELINES
from digit_detector.model_file import INPUT_NAME
from ml_training.data.dataset_loader import load_folder
from ml_training.deploy.checkpoints import find_checkpoints
from ml_training.deploy.export import Network, convert_network, run_model, serialize
from ml_training.deploy.quantise import (
    METHODS,
    HoldoutSet,
    compare,
    quantize,
    quantize_static,
    select_nodes,
    to_float16_storage,
)
from ml_training.results import Floats, Ints
from ml_training.training.checkpoint import load_checkpoint
from ml_training.training.export_job import TrainedCheckpoint, config_of
from ml_training.training.training_data import TrainingData, load_training_data

WHERE = ("data_dir", "extra_digits_dir", "non_digit_dir")
HEAD = ("pipeline", "", "kB", "p50 ms", "p10 ms", "clips", "accuracy %", "digit as fp32 %", "presence as fp32 %")


def open_session(content: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def measure_times(files: Mapping[str, bytes], clips: Floats, runs: int) -> dict[str, Floats]:
    """Milliseconds of single clips, (runs,) for each file and for the reference, alternating clip by clip."""
    sessions = {name: open_session(content) for name, content in files.items()}
    square = np.random.default_rng(0).standard_normal((512, 512), dtype=np.float32)
    times: dict[str, list[float]] = {name: [] for name in (*sessions, "reference")}
    for run in range(-20, runs):
        clip = clips[run % len(clips)][None]
        for name, session in sessions.items():
            session.run(None, {INPUT_NAME: clip})  # the run before has filled the caches
            started = time.perf_counter()
            session.run(None, {INPUT_NAME: clip})
            times[name].append(time.perf_counter() - started)
        started = time.perf_counter()
        square @ square
        times["reference"].append(time.perf_counter() - started)
    return {name: 1e3 * np.array(seconds[20:], dtype=np.float32) for name, seconds in times.items()}


def format_rows(
    pipeline: str, files: Mapping[str, bytes], tests: Mapping[str, tuple[Floats, Ints]], times: Mapping[str, Floats]
) -> Iterator[tuple[str, ...]]:
    """A line for each file and each set of clips."""
    for where, (waveforms, labels) in tests.items():
        wanted = run_model(files["fp32"], waveforms)
        is_digit = labels >= 0
        for name, content in files.items():
            scores, digits = run_model(content, waveforms)
            chosen = scores.argmax(axis=1)
            times_ms = [f"{np.percentile(times[name], q):.3f}" for q in (50, 10)]
            yield (
                pipeline, name, f"{len(content) / 1000:.0f}", *times_ms,
                f"{int(is_digit.sum())} {where}", f"{100 * (chosen == labels)[is_digit].mean():.2f}",
                f"{100 * (chosen == wanted[0].argmax(axis=1))[is_digit].mean():.2f}",
                f"{100 * ((digits >= 0.5) == (wanted[1] >= 0.5)).mean():.2f}",
            )  # fmt: skip


def compare_methods(network: Network, calibration: Floats, holdout: HoldoutSet, runs: int) -> list[tuple[str, ...]]:
    """Size, time and agreement of every form and method."""
    nodes, _ = select_nodes(network)
    files: dict[str, bytes] = {"fp32": network.proto.SerializeToString()}
    for form in ("QDQ", "QOperator"):
        for method in METHODS:
            try:
                proto = quantize_static(network.proto, nodes, calibration, method, form)
                files[f"{form} {method}"] = to_float16_storage(proto).SerializeToString()
            except Exception as error:  # of onnxruntime; printed instead of figures
                print(f"{form} {method} fails: {error}", file=sys.stderr)
    times = measure_times(files, holdout.waveforms, runs)
    rows: list[tuple[str, ...]] = []
    for name, content in files.items():
        report = compare(content, holdout)
        rows.append((
            name, f"{len(content) / 1000:.0f}", f"{np.median(times[name]):.3f}", f"{report.divergence:.5f}",
            f"{100 * report.agreed:.2f}", f"{100 * report.agreed_presence:.2f}",
        ))  # fmt: skip
    return rows


def print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models_dir", default="models", help="folder of trained models")
    parser.add_argument("--pipeline", choices=("all", *PIPELINES), default="all")
    parser.add_argument("--folder", nargs="*", default=[], metavar="DIR", help="further labelled clips")
    parser.add_argument("--runs", type=int, default=500, help="clips that are timed")
    parser.add_argument("--methods", action="store_true", help="compare forms and methods, too")
    for name in WHERE:
        parser.add_argument(f"--{name}", metavar="DIR", help="where these recordings of the training are now")
    arguments = parser.parse_args()
    where = {name: getattr(arguments, name) for name in WHERE if getattr(arguments, name)}
    folders = {Path(folder).name: load_folder(folder) for folder in arguments.folder}
    rows: list[tuple[str, ...]] = []
    compared: list[tuple[str, ...]] = []
    data: TrainingData | None = None
    for name in find_checkpoints(arguments.models_dir, arguments.pipeline):
        checkpoint = load_checkpoint(Path(name))
        if data is None or data.corpus.data_hash != checkpoint["data_hash"]:
            data = load_training_data(config_of(name, checkpoint, where), None, print, print)
        trained = TrainedCheckpoint(name, checkpoint, data)
        network, calibration, holdout = convert_network(trained.model), trained.calibration(), trained.holdout()
        int8 = quantize(network, calibration, holdout)
        files = {"fp32": serialize(network.proto, {}), "int8": serialize(int8.proto, {})}
        times = measure_times(files, holdout.waveforms, arguments.runs)
        tests = {"validation": (holdout.waveforms, holdout.labels)}
        tests |= {folder: (corpus.waveforms, corpus.labels) for folder, corpus in folders.items()}
        rows += format_rows(trained.pipeline.name, files, tests, times)
        reference = f"reference p50 {np.median(times['reference']):.2f} ms"
        print(f"{trained.pipeline.name}: {int8.method}, {int8.layers} layers; {reference}", file=sys.stderr, flush=True)
        if arguments.methods:
            found = compare_methods(network, calibration, holdout, arguments.runs)
            compared += [(trained.pipeline.name, *row) for row in found]
    print_table(HEAD, rows)
    if compared:
        print()
        print_table(("pipeline", "", "kB", "p50 ms", "divergence", "digit as fp32 %", "presence as fp32 %"), compared)
    return 0


if __name__ == "__main__":
    sys.exit(main())
