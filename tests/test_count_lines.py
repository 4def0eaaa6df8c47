"""The script that counts lines of code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "count_lines.py"
LINES = {
    "digit_detector/audio.py": 3, "digit_detector/webapp/app.py": 5, "digit_detector/webapp/deep/down.py": 7,
    "digit_detector/static/page.js": 11, "digit_detector/static/vendor/theirs.js": 13, "ml_training/train.py": 17,
    "tests/test_audio.py": 1200, "tests/notes.md": 23,
}  # fmt: skip


def test_every_line_counts_once_under_its_part(tmp_path: Path) -> None:
    for name, count in LINES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('"""A docstring."""\n' + "\n" * (count - 1))
    done = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[2:] == [
        "| **digit_detector** | 3 | 15 |", "| digit_detector/*.py | 1 | 3 |", "| digit_detector/webapp | 2 | 12 |",
        "| **ml_training** | 1 | 17 |", "| ml_training/*.py | 1 | 17 |", "| **both packages** | 4 | 32 |",
        "| tests | 1 | 1,200 |", "| benchmarks | 0 | 0 |", "| tools | 0 | 0 |", "| examples | 0 | 0 |",
        "| JavaScript of the page | 1 | 11 |",
    ]  # fmt: skip


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "holds no digit_detector, ml_training" in done.stderr
