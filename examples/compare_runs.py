"""The results of all runs in a log folder, one line each.

    python examples/compare_runs.py [train_logs]

Reads the metrics_summary_*.json that every trained pipeline leaves; needs nothing but Python.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare the runs of a log folder")
    parser.add_argument("log_dir", type=Path, nargs="?", default=Path("train_logs"))
    args = parser.parse_args(argv)
    files = sorted(args.log_dir.glob("metrics_summary_*.json"), key=lambda path: path.stem[-15:])  # by time
    if not files:
        print(f"error: no metrics_summary_*.json in {args.log_dir}: train first, or name another", file=sys.stderr)
        return 1
    print(f"{'when':<15} {'pipeline':<8}   right    of  best  seconds     kB     ms  settings")
    for file in files:
        run = json.loads(file.read_text(encoding="utf-8"))
        test, config = run["test"], run["config"]
        shown = ("seed", "epochs", "batch_size", "learning_rate")
        settings = ", ".join(f"{name} {config[name]}" for name in shown)
        print(
            f"{file.stem[-15:]} {run['pipeline']:<8} {100 * test['accuracy']:6.2f}% {test['clips']:>5} "
            f"{run['best_epoch']:>5} {run['train_seconds']:>8.1f} {run['model_bytes'] / 1000:>6.0f} "
            f"{run['latency_ms']:>6.2f}  {settings}; {run['data']['name']}, split {test['protocol']}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
