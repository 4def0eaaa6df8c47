"""How many at once: it grows while there is memory, and halves where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from digit_detector.errors import ModelError, ModelMemoryError
from ml_training.predict import sizes
from ml_training.predict.sizes import FIRST, MOST, Batches

CLIPS = [np.full(8000, n, dtype=np.float32) for n in range(200)]


class Short:
    """Answers with what it hears, at most so many clips at once."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.asked: list[int] = []

    def predict_proba(self, waveforms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.asked.append(len(waveforms))
        if len(waveforms) > self.most:
            raise ModelMemoryError("Failed to allocate memory")
        return np.repeat(waveforms[:, :1], 10, axis=1), waveforms[:, 1]


def run(model: Short, size: int | None, clips: int = 200) -> tuple[list[int], list[str]]:
    notes: list[str] = []
    batches = Batches(model, size, notes.append)
    used, heard = [], []
    while len(heard) < clips:
        group = CLIPS[len(heard) : min(clips, len(heard) + batches.size)]
        used.append(batches.size)
        shares, scores = batches.predict_proba(group)
        assert shares.shape == (len(group), 10)
        heard += scores.tolist()
    assert heard == list(range(clips))
    return used, notes


def test_it_grows_to_what_is_fastest() -> None:
    used, notes = run(Short(10**6), None)
    assert used == [8, 16, 32, 64, 64, 64]
    assert (FIRST, MOST, notes) == (8, 64, [])


def test_it_stops_growing_where_memory_gets_short(monkeypatch) -> None:
    monkeypatch.setattr(sizes, "used_memory", iter([1000, 1010, 1030, 1030, 1030]).__next__)
    monkeypatch.setattr(sizes, "available_memory", lambda: 100)
    used, _ = run(Short(10**6), None, 70)
    assert used == [8, 16, 16, 16, 16]


@pytest.mark.parametrize(
    ("size", "most", "lasting"), [(None, 20, 16), (None, 3, 2), (100, 30, 25), (1, 1, 1), (None, 1, 1)]
)
def test_it_halves_what_is_too_much_and_stays_there(size, most, lasting) -> None:
    model = Short(most)
    used, notes = run(model, size)
    assert used[-1] == lasting
    assert len([asked for asked in model.asked if asked > most]) == len(notes) <= 5
    if notes:
        assert notes[-1].startswith("not enough memory for ")
        assert notes[-1].endswith(f" clips at once: going on with {lasting}")


def test_a_single_clip_that_is_too_much_is_an_error() -> None:
    with pytest.raises(ModelMemoryError, match="no memory left to answer a single clip"):
        run(Short(0), None)

    class Damaged(Short):
        def predict_proba(self, waveforms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            raise ModelError("is damaged")

    with pytest.raises(ModelError, match="is damaged"):
        run(Damaged(0), None)


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from ml_training.predict.sizes import Batches
from ml_training.inference import load_classifier
classifier = load_classifier("pretrained", sys.argv[1], int(sys.argv[2]))
clips = list(np.random.default_rng(0).normal(0, 0.1, (512, 8000)).astype(np.float32))
alone = np.concatenate([classifier.probabilities(clip[None]) for clip in clips[:32]])
stacked = np.stack(clips)  # as much as the first attempt puts together
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (24 << 20),) * 2)
batches = Batches(classifier, 512, print)
heard = batches.predict_proba(clips)
assert heard[0].shape == (512, 10) and heard[1].shape == (512,)
assert np.allclose(heard[0][:32], alone, atol=1e-5)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("pipeline", "threads"), [("mfcc", 1), ("mel_cnn", 2), ("raw_cnn", 1)])
def test_onnxruntime_out_of_memory_answers_in_halves(pipeline: str, threads: int) -> None:
    command = [sys.executable, "-c", LIMITED, pipeline, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("not enough memory for 512 clips at once: going on with 256\n")
