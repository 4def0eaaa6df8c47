"""benchmarks/performance.py measures the same networks, however they are computed, and counts what they cost."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from digit_detector.labels import PIPELINES
from ml_training.pipelines.features import PowerSpectrogram

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.filterwarnings("ignore:.*slated for removal:DeprecationWarning")  # what librosa imports


@pytest.fixture(scope="module")
def performance() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "performance.py"))


def test_the_other_forms_of_the_transform_are_the_same_transform(performance: dict[str, Any]) -> None:
    waveforms = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 8000), dtype=np.float32))
    expected = PowerSpectrogram()(waveforms)
    for name in ("Unfolded", "ByConvolution"):
        torch.testing.assert_close(performance[name]()(waveforms), expected, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_step_is_timed_in_turn(performance: dict[str, Any], pipeline: str) -> None:
    everybody = performance["candidates"](pipeline)  # leaves the program where one answers otherwise
    steps = set(performance["STEPS"])
    assert set(everybody) == (steps if pipeline != "raw_cnn" else {s for s in steps if not s.startswith("transform")})
    clips = np.random.default_rng(0).standard_normal((3, 8000), dtype=np.float32)
    times = performance["in_turn"](everybody, clips, 1, 4)
    assert all(len(found) == 2 and min(found) > 1 for found in times.values())
    shares = performance["shares"](pipeline, clips, 3)
    assert 0.1e6 < shares.multiply_adds < 50e6
    assert 0.5 < shares.megabytes < 50
    assert 20 < shares.nodes < 300
    table = performance["roofline_table"](
        dict.fromkeys(PIPELINES, shares), dict.fromkeys(PIPELINES, times), 100.0, 50.0, 0.3
    )
    assert all(row.count("|") == 5 for row in table)
