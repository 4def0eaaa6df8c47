"""What makes answering fast: every step taken back by itself, where the time goes, and what the processor could do

    python benchmarks/performance.py [--rounds 30] [--singles 20] [--update-docs]

The models that ship, one clip at a time, on one thread. All candidates take turns, so that a busy minute of the machine
slows all of them; medians. A fixed matrix product tells the speed of the machine meanwhile. --update-docs
writes docs/performance.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from librosa_baseline import eager_model, network_in
from peers import REFERENCE_MS, reference_matmul
from torch import Tensor, nn
from trainings import ROOT, head

from digit_detector.classifier import model_file
from digit_detector.inspection import inspect_model
from digit_detector.labels import INT8, PIPELINES, PRETRAINED
from digit_detector.model_file import DIGIT_NAME, INPUT_NAME, SCORES_NAME
from ml_training.deploy.export import convert_network
from ml_training.evaluation.speed import machine
from ml_training.pipelines.base import DigitModel
from ml_training.pipelines.features import BINS, WINDOW, PowerSpectrogram, split_frames
from ml_training.results import Floats

PAGE = ROOT / "docs" / "performance.md"
AS_IT_IS = "as it ships"
STEPS = {
    "librosa and eager torch": "what most people write",
    "our front end, eager torch": "the front end as a part of the network",
    "transform not folded": "a DFT without its symmetry: 256 x 258 tables instead of 128 x 129 and 127 x 129",
    "transform by convolution": "frames and transform as a strided convolution, the other usual form",
    "graph not optimised": "onnxruntime without fusing and folding",
    "two threads": "for one clip",
    "IO binding": "inputs and outputs bound once",
    AS_IT_IS: "",
    "8 bits": 'precision="int8"',
}
TOP = 8  # operators told of each model
CACHED, BEYOND = 1 << 16, 1 << 25  # numbers copied to find the speed of the caches and of the memory
CHAIN = 200  # nodes of the graph that does nothing, which tells what a node costs


class Unfolded(nn.Module):
    """(B, T) -> (B, K, F): |DFT|^2 as one product with all cosines and sines."""

    tables: Tensor

    def __init__(self) -> None:
        super().__init__()
        time = torch.arange(WINDOW, dtype=torch.float64)[:, None] - WINDOW // 2
        angle = 2 * torch.pi * time * torch.arange(BINS, dtype=torch.float64) / WINDOW
        hann = 0.5 + 0.5 * torch.cos(2 * torch.pi * time / WINDOW)
        tables = torch.cat([hann * angle.cos(), hann * angle.sin()], dim=1)
        self.register_buffer("tables", tables.float(), persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        both = torch.matmul(split_frames(waveforms), self.tables).square()
        return (both[:, :, :BINS] + both[:, :, BINS:]).transpose(1, 2)


class ByConvolution(nn.Module):
    """The same as a convolution over the waveform with a stride of one hop."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = Unfolded().tables.T[:, None]  # (2K, 1, WINDOW)

    def forward(self, waveforms: Tensor) -> Tensor:
        padded = nn.functional.pad(waveforms[:, None], (WINDOW // 2, WINDOW // 2))
        both = nn.functional.conv1d(padded, self.tables, stride=160).square()
        return both[:, :BINS] + both[:, BINS:]


def with_transform(model: DigitModel, transform: Callable[[], nn.Module]) -> DigitModel | None:
    """The model with another spectrogram; None where it has none."""
    found = False
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, PowerSpectrogram):
                setattr(parent, name, transform())
                found = True
    return model if found else None


def session(content: bytes, threads: int = 1, optimised: bool = True, profile: str = "") -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


Answer = Callable[[Floats], Any]


def asked(content: bytes, **how: Any) -> Answer:
    opened = session(content, **how)
    return lambda clip: opened.run(None, {INPUT_NAME: clip})


def bound(content: bytes) -> Answer:
    """Input and outputs bound to memory that stays."""
    opened, place = session(content), np.zeros((1, 8000), dtype=np.float32)
    binding = opened.io_binding()
    binding.bind_cpu_input(INPUT_NAME, place)
    for name in (SCORES_NAME, DIGIT_NAME):
        binding.bind_output(name)

    def answer(clip: Floats) -> Any:
        place[:] = clip
        opened.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()

    return answer


def candidates(pipeline: str) -> dict[str, Answer]:
    """Everybody that can hear a clip (1, 8000), by the name of the step."""
    file = model_file(PRETRAINED, pipeline)
    content = file.read_bytes()
    librosa, eager = eager_model(file, pipeline)[0], network_in(file, pipeline)
    found: dict[str, Answer] = {
        "librosa and eager torch": lambda clip: librosa(torch.from_numpy(clip)),
        "our front end, eager torch": lambda clip: eager(torch.from_numpy(clip)),
        "graph not optimised": asked(content, optimised=False),
        "two threads": asked(content, threads=2),
        "IO binding": bound(content),
        AS_IT_IS: asked(content),
        "8 bits": asked(model_file(PRETRAINED, pipeline, INT8).read_bytes()),
    }
    for name, transform in (("transform not folded", Unfolded), ("transform by convolution", ByConvolution)):
        changed = with_transform(network_in(file, pipeline), transform)
        if changed is not None:
            found[name] = asked(convert_network(changed).proto.SerializeToString())
    clip = np.random.default_rng(0).standard_normal((1, 8000), dtype=np.float32)
    wanted = found[AS_IT_IS](clip)[0]
    for name, answer in found.items():  # all the same network
        with torch.inference_mode():
            difference = float(np.abs(np.asarray(answer(clip)[0]) - wanted).max())
        if difference > (1.0 if name == "8 bits" else 1e-2):
            sys.exit(f"{pipeline}, {name}: answers otherwise, by {difference:.2g}")
    return {name: found[name] for name in STEPS if name in found}


def in_turn(everybody: Mapping[str, Answer], clips: Floats, rounds: int, singles: int) -> dict[str, list[float]]:
    """Microseconds of single clips, by name."""
    times: dict[str, list[float]] = {name: [] for name in everybody}
    with torch.inference_mode():
        for turn in range(-1, rounds):
            for name, answer in everybody.items():
                for number in range(singles):
                    clip = clips[number % len(clips)][None]
                    began = time.perf_counter()
                    answer(clip)
                    if turn >= 0 and number > 1:  # those before fill the caches
                        times[name].append(1e6 * (time.perf_counter() - began))
    return times


@dataclass(frozen=True)
class Shares:
    """What one clip costs by the count."""

    operators: Mapping[str, float]  # name -> microseconds
    nodes: int  # of the graph that is run
    megabytes: float  # read and written by all nodes
    multiply_adds: int


def shares(pipeline: str, clips: Floats, runs: int = 300) -> Shares:
    """Onnxruntime's own profile of the model that ships."""
    file = model_file(PRETRAINED, pipeline)
    with tempfile.TemporaryDirectory() as folder:
        opened = session(file.read_bytes(), profile=f"{folder}/profile")
        for number in range(runs):
            opened.run(None, {INPUT_NAME: clips[number % len(clips)][None]})
        events = json.loads(Path(opened.end_profiling()).read_text())
    nodes: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            nodes.setdefault(event["name"], []).append(event)
    operators: Counter[str] = Counter()
    moved = 0
    for found in nodes.values():
        told = found[-1]["args"]
        operators[told["op_name"]] += float(np.median([event["dur"] for event in found]))  # type: ignore[assignment]
        moved += sum(int(told.get(name, 0)) for name in ("activation_size", "parameter_size", "output_size"))
    graph = inspect_model(file).graph
    assert graph is not None
    return Shares(dict(operators.most_common()), len(nodes), moved / 1e6, graph.multiply_adds)


def openings(pipeline: str, rounds: int) -> dict[str, float]:
    """Milliseconds until a model can be asked: as it ships, and from a graph that was optimised before and kept."""
    content = model_file(PRETRAINED, pipeline).read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath, options.log_severity_level = f"{folder}/kept.onnx", 4
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        kept = Path(folder, "kept.onnx").read_bytes()
    ways: dict[str, Callable[[], Any]] = {
        AS_IT_IS: lambda: session(content),
        "graph optimised before and kept": lambda: session(kept, optimised=False),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            times[name].append(1e3 * (time.perf_counter() - began))
    return {name: float(np.median(found)) for name, found in times.items()}


def node_cost() -> float:
    """Microseconds that a node costs which computes next to nothing."""
    names = [INPUT_NAME, *(f"v{number}" for number in range(CHAIN))]
    nodes = [onnx.helper.make_node("Neg", [a], [b]) for a, b in itertools.pairwise(names)]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "chain", [value(names[0], 1, [1, 1])], [value(names[-1], 1, [1, 1])]
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    answer, clip = asked(model.SerializeToString(), optimised=False), np.zeros((1, 1), dtype=np.float32)
    return float(np.median(in_turn({"": answer}, clip, 3, 200)[""])) / CHAIN


def bytes_a_second(numbers: int) -> float:
    """GB read and written each second by a copy of so many float32."""
    source, target = np.zeros((2, numbers), dtype=np.float32)
    times = []
    for _ in range(20):
        began = time.perf_counter()
        repeats = max(1, (1 << 22) // numbers)
        for _ in range(repeats):
            np.copyto(target, source)
        times.append((time.perf_counter() - began) / repeats)
    return 8 * numbers / float(np.median(times)) / 1e9


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}", *(f"| {' | '.join(r)} |" for r in rows)]


def steps_table(times: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    def cell(pipeline: str, step: str) -> str:
        found = times[pipeline]
        if step not in found:
            return ""
        middle = float(np.median(found[step]))
        return f"{middle:.0f} ({middle / float(np.median(found[AS_IT_IS])):.2f})"

    rows = [[f"{s}{', ' if w else ''}{w}", *(cell(p, s) for p in PIPELINES)] for s, w in STEPS.items()]
    return table(["microseconds a clip (times as it ships)", *PIPELINES], rows)


def roofline_table(
    found: Mapping[str, Shares],
    times: Mapping[str, Mapping[str, Sequence[float]]],
    peak: float,
    cache: float,
    node: float,
) -> list[str]:
    """`peak` in GFLOP/s, `cache` in GB/s, `node` in microseconds."""
    rows: list[list[str]] = []
    measured = {p: float(np.median(times[p][AS_IT_IS])) for p in PIPELINES}
    cells: tuple[tuple[str, Callable[[str], str]], ...] = (
        ("multiply-adds, million", lambda p: f"{found[p].multiply_adds / 1e6:.2f}"),
        ("read and written by all nodes, MB", lambda p: f"{found[p].megabytes:.2f}"),
        ("operations a byte", lambda p: f"{2 * found[p].multiply_adds / found[p].megabytes / 1e6:.1f}"),
        ("nodes", lambda p: f"{found[p].nodes}"),
        ("at the speed of the reference product, us", lambda p: f"{2 * found[p].multiply_adds / peak / 1e3:.0f}"),
        ("at the speed of the caches, us", lambda p: f"{1e3 * found[p].megabytes / cache:.0f}"),
        ("nodes that compute nothing, us", lambda p: f"{found[p].nodes * node:.0f}"),
        ("measured, us", lambda p: f"{measured[p]:.0f}"),
        ("GFLOP/s", lambda p: f"{2 * found[p].multiply_adds / measured[p] / 1e3:.0f}"),
        ("share of the reference product's", lambda p: f"{2 * found[p].multiply_adds / measured[p] / 1e3 / peak:.0%}"),
    )
    for title, cell in cells:
        rows.append([title, *(cell(p) for p in PIPELINES)])
    return table(["one clip", *PIPELINES], rows)


def operators_table(found: Mapping[str, Shares]) -> list[str]:
    def cell(pipeline: str, place: int) -> str:
        name, spent = list(found[pipeline].operators.items())[place]
        return f"{name} {spent / sum(found[pipeline].operators.values()):.0%}"

    return table(["", *PIPELINES], [[str(n + 1), *(cell(p, n) for p in PIPELINES)] for n in range(TOP)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="how often everybody has a turn")
    parser.add_argument("--singles", type=int, default=20, help="clips of a turn")
    parser.add_argument("--update-docs", action="store_true", help="write docs/performance.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    clips = 0.1 * np.random.default_rng(0).standard_normal((20, 8000), dtype=np.float32)
    sticks, times, found, opened = [reference_matmul()], {}, {}, {}
    for pipeline in PIPELINES:
        times[pipeline] = in_turn(candidates(pipeline), clips, arguments.rounds, arguments.singles)
        found[pipeline] = shares(pipeline, clips)
        opened[pipeline] = openings(pipeline, arguments.rounds)
        sticks.append(reference_matmul())
    stick, node = float(np.median(sticks)), node_cost()
    peak, cache, memory = 2 * 512**3 / stick / 1e6, bytes_a_second(CACHED), bytes_a_second(BEYOND)
    rates = (
        f"The reference, a product of two 512 x 512 float32 matrices on one thread, takes {stick:.2f} ms: "
        f"{peak:.0f} GFLOP/s. A copy of {CACHED * 4 // 1024} kB moves {cache:.0f} GB/s, one of {BEYOND * 4 >> 20} MB "
        f"{memory:.0f} GB/s. A node of onnxruntime that computes next to nothing takes {node:.2f} us."
    )
    scaled = ", ".join(
        f"{p} {np.median(times[p][AS_IT_IS]) * REFERENCE_MS / stick / 1e3:.2f}" for p in PIPELINES
    )  # fmt: skip
    ways = opened[PIPELINES[0]]
    parts = [
        ["## Steps", "", "Each row takes one step back and leaves the others.", "", *steps_table(times), ""],
        [f"Milliseconds as if the reference product took {REFERENCE_MS:g} ms: {scaled}.", ""],
        ["Opening a model, milliseconds:", "",
         *table(["", *PIPELINES], [[way, *(f"{opened[p][way]:.1f}" for p in PIPELINES)] for way in ways]), ""],
        ["## Roofline", "", rates, "", *roofline_table(found, times, peak, cache, node), ""],
        ["## Operators", "", "Share of each kind in onnxruntime's own profile of the model that ships.", "",
         *operators_table(found), ""],
    ]  # fmt: skip
    text = "\n".join(line for part in parts for line in part)
    print(text)
    if arguments.update_docs:
        before, _, _ = PAGE.read_text(encoding="utf-8").partition("<!-- measured -->")
        told = "; ".join(f"{name} {value}" for name, value in machine().items())
        made = f"{datetime.now(UTC):%Y-%m-%d}, commit {head()}, {platform.machine()}; {told}."
        PAGE.write_text(
            f"{before}<!-- measured -->\nWritten by `python benchmarks/performance.py --update-docs`; {made}\n\n{text}",
            encoding="utf-8",
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
