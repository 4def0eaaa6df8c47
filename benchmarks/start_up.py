"""How long does an answer take from process start, next to merely importing numpy and onnxruntime?

    python benchmarks/start_up.py [--model_dir models] [--pipeline mfcc] [--audio x.wav] [--runs 15] [--limit 1.6]

Both programs run in turn, so that a busy machine slows both; medians and their ratio are printed. Leaves with 1 when
the ratio is that of --limit or more.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

INFERENCE = Path(__file__).resolve().parents[1] / "ml_training" / "inference.py"


def seconds(command: list[str]) -> float:
    """Wall time of one process, its output read to the end."""
    # pip compiles what it installs; a checkout is compiled by the first run, also where that was turned off
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    elapsed = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{' '.join(command)} left with {done.returncode}: {done.stderr.strip()}")
    return elapsed


def main() -> int:
    parser = argparse.ArgumentParser(description="Time from process start to printed answer")
    parser.add_argument("--model_dir", default="models")
    parser.add_argument("--pipeline", default="mfcc")
    parser.add_argument("--audio", help="a recording (default: half a second of noise)")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--limit", type=float, help="ratio that is too much (1.6 is wanted on a machine that is idle)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        audio = args.audio or f"{folder}/noise.wav"
        if not args.audio:
            soundfile.write(audio, np.random.default_rng(0).uniform(-0.1, 0.1, 4000), 8000)
        imports = [sys.executable, "-c", "import numpy, onnxruntime"]
        answer = [sys.executable, str(INFERENCE), "--model_dir", args.model_dir, "--pipeline", args.pipeline]
        answer += ["--audio", audio]
        seconds(imports), seconds(answer)  # the first runs read from disk
        times = [(seconds(imports), seconds(answer)) for _ in range(args.runs)]
    bare, whole = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"import numpy, onnxruntime    {1e3 * bare:7.0f} ms")
    print(f"start to printed answer      {1e3 * whole:7.0f} ms   ({args.pipeline})")
    print(f"ratio                        {whole / bare:7.2f}      (medians of {args.runs} runs)")
    return 0 if args.limit is None or whole / bare < args.limit else 1


if __name__ == "__main__":
    sys.exit(main())
