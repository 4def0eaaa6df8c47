"""Properties of the peak picker on arbitrary posteriors."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from digit_detector.streaming.config import DetectorConfig
from digit_detector.streaming.peak_picker import Candidate, PeakPicker

CONFIG = DetectorConfig(spotter_threshold=0.3, detection_threshold=0.5)


@st.composite
def posteriors(draw: st.DrawFn) -> np.ndarray:
    """(F, 10) with stretches of high and of low values, an even number of frames as in blocks of two."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = draw(st.lists(st.sampled_from([0.0, 0.05, 0.14, 0.3, 0.6, 1.0]), min_size=1, max_size=40))
    rows = np.repeat(levels, rng.integers(1, 7, len(levels)))
    made = rng.uniform(0.0, 0.05, (len(rows) // 2 * 2, 10))
    made[np.arange(len(made)), rng.integers(0, 4, len(made)) // 3] = rows[: len(made)]
    return made.astype(np.float32)


def pick(frames: np.ndarray, in_blocks: bool) -> list[Candidate]:
    """Candidates where frames are pushed one by one, or blocks that can decide nothing are skipped at once."""
    picker, found = PeakPicker(CONFIG), []
    for first in range(0, len(frames), 2):
        block = frames[first : first + 2]
        if in_blocks and picker.skip_low(block, float(block.max())):
            continue
        found += [picker.push(first + i, row, 20.0) for i, row in enumerate(block)]
    return [candidate for candidate in found if candidate is not None]


@settings(max_examples=150, deadline=None)
@given(frames=posteriors())
def test_skipping_blocks_changes_nothing_and_candidates_are_valid(frames: np.ndarray):
    one_by_one, in_blocks = pick(frames, False), pick(frames, True)
    assert [(c.digit, c.first, c.last, c.frame) for c in in_blocks] == [
        (c.digit, c.first, c.last, c.frame) for c in one_by_one
    ]
    assert all(b.frame - a.frame >= CONFIG.refractory_frames for a, b in pairwise(one_by_one))
    padded = np.concatenate([np.zeros((2, 10), dtype=np.float32), frames]).astype(np.float64)
    smoothed = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    for candidate in one_by_one:
        span = smoothed[max(0, candidate.frame - CONFIG.max_peak_frames) : candidate.frame + 1, candidate.digit]
        assert candidate.posteriors[candidate.digit] >= CONFIG.spotter_threshold
        assert np.isclose(span, candidate.posteriors[candidate.digit], atol=1e-6).any(), "the peak is in the posteriors"
