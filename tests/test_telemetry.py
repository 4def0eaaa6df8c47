"""No library that answers reports its use, or leaves an identifier of the machine behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ANSWER = """
import numpy as np
from ml_training.inference import load_classifier
load_classifier("pretrained", "mfcc").predict(0.1 * np.random.default_rng(0).standard_normal(8000))
"""
LISTEN = """
import numpy as np
from digit_detector import StreamingDetector
StreamingDetector().feed(np.zeros(8000, dtype=np.float32), 8000)
"""


@pytest.mark.parametrize("script", [ANSWER, LISTEN], ids=["answer", "listen"])
def test_nothing_is_kept_for_reports_about_its_use(script: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    environment |= {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], env=environment, cwd=tmp_path, check=True, timeout=120)
    assert list(tmp_path.rglob("*")) == []
