"""What int8 costs and brings: size, time, accuracy and agreement beside fp32, for each trained model

    python benchmarks/int8.py --models_dir models [--folder DIR ...] [--ways] [--runs 500]

Reads each best_model.pt of --models_dir and the recordings it learnt from (their places as the checkpoint says, or
--data_dir, --extra_dir, --words_dir), makes both files as `digits export` does, and lets them answer in turn: the
validation part and each --folder of labelled clips. One clip at a time, one thread; beside them runs a reference, a
product of two 512 x 512 float32 matrices. --ways adds a table of every form and method of quantisation. Give it no
recordings that are kept for evaluation: what it prints is there to decide by.
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
from ml_training.deploy.checkpoints import checkpoints_in
from ml_training.deploy.export import Network, answers, network_of, sealed
from ml_training.deploy.quantise import METHODS, Judges, halved, in_8_bits, inner_nodes, judged, quantised
from ml_training.results import Floats, Ints
from ml_training.training.checkpoint import load_checkpoint
from ml_training.training.export_job import TrainedCheckpoint, config_of
from ml_training.training.training_data import TrainingData, load_training_data

WHERE = ("data_dir", "extra_dir", "words_dir")
HEAD = ("pipeline", "", "kB", "p50 ms", "p10 ms", "right of", "%", "answers like fp32 %", "digit or not like fp32 %")


def session(content: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def in_turn(files: Mapping[str, bytes], clips: Floats, runs: int) -> dict[str, Floats]:
    """Milliseconds of single clips, (runs,) for each file and for the reference; all take turns, clip by clip."""
    sessions = {name: session(content) for name, content in files.items()}
    square = np.random.default_rng(0).standard_normal((512, 512), dtype=np.float32)
    times: dict[str, list[float]] = {name: [] for name in (*sessions, "reference")}
    for run in range(-20, runs):
        clip = clips[run % len(clips)][None]
        for name, asked in sessions.items():
            asked.run(None, {INPUT_NAME: clip})  # what ran before has filled the caches
            started = time.perf_counter()
            asked.run(None, {INPUT_NAME: clip})
            times[name].append(time.perf_counter() - started)
        started = time.perf_counter()
        square @ square
        times["reference"].append(time.perf_counter() - started)
    return {name: 1e3 * np.array(found[20:], dtype=np.float32) for name, found in times.items()}


def rows_of(
    pipeline: str, files: Mapping[str, bytes], heard_on: Mapping[str, tuple[Floats, Ints]], times: Mapping[str, Floats]
) -> Iterator[tuple[str, ...]]:
    """A line for each file and each set of clips."""
    for where, (waveforms, labels) in heard_on.items():
        wanted = answers(files["fp32"], waveforms)
        said = labels >= 0
        for name, content in files.items():
            scores, digits = answers(content, waveforms)
            chosen = scores.argmax(axis=1)
            took = [f"{np.percentile(times[name], q):.3f}" for q in (50, 10)]
            yield (
                pipeline, name, f"{len(content) / 1000:.0f}", *took,
                f"{int(said.sum())} {where}", f"{100 * (chosen == labels)[said].mean():.2f}",
                f"{100 * (chosen == wanted[0].argmax(axis=1))[said].mean():.2f}",
                f"{100 * ((digits >= 0.5) == (wanted[1] >= 0.5)).mean():.2f}",
            )  # fmt: skip


def ways(network: Network, calibration: Floats, judges: Judges, runs: int) -> list[tuple[str, ...]]:
    """Every form and method: size, time, and how near to the network it comes on the judges."""
    nodes, _ = inner_nodes(network)
    files: dict[str, bytes] = {"fp32": network.proto.SerializeToString()}
    for form in ("QDQ", "QOperator"):
        for method in METHODS:
            try:
                proto = in_8_bits(network.proto, nodes, calibration, method, form)
                files[f"{form} {method}"] = halved(proto).SerializeToString()
            except Exception as error:  # of onnxruntime: said in the place of figures
                print(f"{form} {method} fails: {error}", file=sys.stderr)
    times = in_turn(files, judges.waveforms, runs)
    found: list[tuple[str, ...]] = []
    for name, content in files.items():
        verdict = judged(content, judges)
        found.append((
            name, f"{len(content) / 1000:.0f}", f"{np.median(times[name]):.3f}", f"{verdict.divergence:.5f}",
            f"{100 * verdict.agreed:.2f}", f"{100 * verdict.agreed_whether:.2f}",
        ))  # fmt: skip
    return found


def show(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models_dir", default="models", help="folder of trained models")
    parser.add_argument("--pipeline", choices=("all", *PIPELINES), default="all")
    parser.add_argument("--folder", nargs="*", default=[], metavar="DIR", help="labelled clips to hear besides")
    parser.add_argument("--runs", type=int, default=500, help="clips that are timed")
    parser.add_argument("--ways", action="store_true", help="compare forms and methods, too")
    for name in WHERE:
        parser.add_argument(f"--{name}", metavar="DIR", help="where these recordings of the training lie now")
    arguments = parser.parse_args()
    where = {name: getattr(arguments, name) for name in WHERE if getattr(arguments, name)}
    folders = {Path(folder).name: load_folder(folder) for folder in arguments.folder}
    rows: list[tuple[str, ...]] = []
    compared: list[tuple[str, ...]] = []
    material: TrainingData | None = None
    for name in checkpoints_in(arguments.models_dir, arguments.pipeline):
        checkpoint = load_checkpoint(Path(name))
        if material is None or material.corpus.data_hash != checkpoint["data_hash"]:
            material = load_training_data(config_of(name, checkpoint, where), None, print, print)
        trained = TrainedCheckpoint(name, checkpoint, material)
        network, calibration, judges = network_of(trained.model), trained.calibration(), trained.judges()
        int8 = quantised(network, calibration, judges)
        files = {"fp32": sealed(network.proto, {}), "int8": sealed(int8.proto, {})}
        times = in_turn(files, judges.waveforms, arguments.runs)
        heard_on = {"validation": (judges.waveforms, judges.labels)}
        heard_on |= {folder: (corpus.waveforms, corpus.labels) for folder, corpus in folders.items()}
        rows += rows_of(trained.pipeline.name, files, heard_on, times)
        reference = f"reference p50 {np.median(times['reference']):.2f} ms"
        print(f"{trained.pipeline.name}: {int8.method}, {int8.layers} layers; {reference}", file=sys.stderr, flush=True)
        if arguments.ways:
            found = ways(network, calibration, judges, arguments.runs)
            compared += [(trained.pipeline.name, *row) for row in found]
    show(HEAD, rows)
    if compared:
        print()
        show(("pipeline", "", "kB", "p50 ms", "divergence", "answers like fp32 %", "digit or not %"), compared)
    return 0


if __name__ == "__main__":
    sys.exit(main())
