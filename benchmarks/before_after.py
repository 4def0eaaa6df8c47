"""Compare two checkouts in one run: answers, detections, speed, memory, trainings.

    python benchmarks/before_after.py --before OLD_CHECKOUT --after . --clips FSDD [--rounds 5] [--train]

Each figure is measured in child processes that alternate between the checkouts; times are medians. Answers and
detections are compared bit for bit. --train also trains every pipeline for two epochs with seed 0 on --clips.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ANSWERS = """
import hashlib, json, sys
from pathlib import Path
from ml_training.inference import load_classifier
files = sorted(Path(sys.argv[1]).rglob("*.wav"))[::3][:1000]
digests = {}
for pipeline in ("mfcc", "mel_cnn", "raw_cnn"):
    for precision in ("fp32", "int8"):
        answers = load_classifier("pretrained", pipeline, precision=precision).batch_predict(files)
        kept = [[a["probabilities"], a["digit_score"]] for a in answers]
        digests[f"{pipeline} {precision}, {len(files)} clips"] = hashlib.sha256(json.dumps(kept).encode()).hexdigest()
print(json.dumps(digests))
"""
DETECTIONS = """
import json, sys
from pathlib import Path
import numpy as np
from digit_detector import StreamingDetector
from digit_detector.audio import decode
rng = np.random.default_rng(0)
files = sorted(Path(sys.argv[1]).rglob("*.wav"))
parts, length = [], 0
while length < 600 * 8000:
    pause = rng.normal(0, 1e-3, int(rng.uniform(800, 8000))).astype("float32")
    parts += [decode(files[rng.integers(len(files))]), pause]
    length += parts[-1].size + parts[-2].size
sound = np.concatenate(parts)
detector, found = StreamingDetector(), []
for block in np.array_split(sound, 999):
    found += detector.feed(block, sample_rate=8000)
found += detector.flush()
print(json.dumps([[d.digit, d.confidence, d.start, d.end, d.delay] for d in found]))
"""
SPEED = """
import json, sys, time
begin = time.perf_counter()
from pathlib import Path
from ml_training.inference import load_classifier
classifier = load_classifier("pretrained", sys.argv[2])
files = sorted(Path(sys.argv[1]).rglob("*.wav"))[:600]
classifier.predict(files[0])
start = time.perf_counter() - begin
speed = classifier.benchmark_speed(num_samples=300)
begin = time.perf_counter()
classifier.batch_predict(files)
batch = len(files) / (time.perf_counter() - begin)
print(json.dumps({"import to first answer, ms": 1000 * start, "predict p50, ms": speed["p50_ms"],
                  "clips a second in batches": speed["batch_throughput_per_second"], "files a second": batch}))
"""


def run(checkout: Path, code: str, *words: str) -> Any:
    """The JSON that `code` prints in a process that imports the packages of `checkout`."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=checkout, check=False)
    if done.returncode:
        sys.exit(f"{checkout}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def train(checkout: Path, pipeline: str, clips: str) -> dict[str, float]:
    """Seconds, peak memory in MB and test errors of two epochs."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, str(checkout / "ml_training" / "train.py"), "--pipeline", pipeline, "--epochs", "2",
            "--data_dir", clips, "--no_cache", "--threads", "1",
        ]  # fmt: skip
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        child = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            sys.exit(f"{checkout}: {' '.join(command)} failed")
        summary = json.loads(next(Path(folder).glob("train_logs/metrics_summary_*.json")).read_text())
    seconds, memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
    return {"training, CPU s": seconds, "training, peak MB": memory, "test accuracy": summary["test"]["accuracy"]}


def compare(name: str, values: tuple[list[float], list[float]]) -> str:
    before, after = (statistics.median(part) for part in values)
    return f"| {name} | {before:.4g} | {after:.4g} | {after / before:.3f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="the older checkout")
    parser.add_argument("--after", type=Path, default=Path(), help="the newer one (default: this folder)")
    parser.add_argument("--clips", required=True, help="folder of FSDD")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each checkout")
    parser.add_argument("--train", action="store_true", help="train each pipeline for two epochs, too")
    arguments = parser.parse_args()
    pair = (arguments.before.resolve(), arguments.after.resolve())
    clips = str(Path(arguments.clips).resolve())
    for name, code in (("answers", ANSWERS), ("detections in ten minutes", DETECTIONS)):
        before, after = (run(checkout, code, clips) for checkout in pair)
        print(f"{name}: {'the same bits' if before == after else 'DIFFERENT'} ({len(after)})", flush=True)
    print("\n| | before | after | ratio |\n|---|---:|---:|---:|")
    for pipeline in ("mfcc", "mel_cnn", "raw_cnn"):
        measured = [[run(checkout, SPEED, clips, pipeline) for checkout in pair] for _ in range(arguments.rounds)]
        for key in measured[0][0]:
            print(
                compare(f"{pipeline}: {key}", ([m[0][key] for m in measured], [m[1][key] for m in measured])),
                flush=True,
            )
        if arguments.train:
            trained = [train(checkout, pipeline, clips) for checkout in pair]
            for key in trained[0]:
                print(compare(f"{pipeline}: {key}", ([trained[0][key]], [trained[1][key]])), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
