"""Recognisers of the benchmarks: what counts as a digit in a transcription, and peers that answer as our models do."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from recognisers import Eager, Exported, RecogniserSpec, Sources, recognisers

from digit_detector.audio import SAMPLE_RATE
from digit_detector.labels import LABELS, PIPELINES
from digit_detector.processors.baselines import NOTHING, SOUNDS_LIKE, parse_digit

# --- transcriptions ------------------------------------------------------------------------------


@pytest.mark.parametrize("digit", range(10))
@pytest.mark.parametrize("written", ["{}", " {}.", "{}!", "The {}, please"])
def test_a_digit_is_found_as_word_and_as_figure(digit: int, written: str) -> None:
    for name in (LABELS[digit], LABELS[digit].capitalize(), LABELS[digit].upper(), str(digit)):
        assert parse_digit(written.format(name)) == digit


@pytest.mark.parametrize(
    ("text", "digit"),
    [
        ("Four four.", 4), ("one, two, three", 1), ("To.", 2), ("too", 2), ("For", 4), ("won", 1), ("Ate.", 8),
        ("Oh!", 0), ("2,2,2", 2), ("seven8", 7), ("7-up", 7), ("41", 4),
    ],
)  # fmt: skip
def test_the_first_that_is_or_sounds_like_a_digit_counts(text: str, digit: int) -> None:
    assert parse_digit(text) == digit


@pytest.mark.parametrize("text", ["", " ", "...", "Thank you.", "someone", "sixty", "[BLANK_AUDIO]", "tenor"])
def test_anything_else_is_no_digit(text: str) -> None:
    assert parse_digit(text) == NOTHING


def test_no_digit_sounds_like_another() -> None:
    assert not set(SOUNDS_LIKE) & set(LABELS)
    assert set(SOUNDS_LIKE.values()) <= set(range(10))


# --- who answers ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    rng = np.random.default_rng(0)
    seconds = np.arange(8000) / SAMPLE_RATE
    tones = [np.sin(2 * np.pi * hz * seconds) * np.hanning(8000) for hz in (150, 400, 1300)]
    return (np.stack(tones) * 0.3 + 0.01 * rng.standard_normal((3, 8000))).astype(np.float32)


@pytest.mark.filterwarnings("ignore:.*slated for removal:DeprecationWarning")  # what librosa imports
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_same_network_on_librosa_gives_the_same_answers(pipeline: str, clips: np.ndarray) -> None:
    import torch

    specs, sources = recognisers(), Sources()
    ours, peer = specs[pipeline].open(sources, 1), specs[f"{pipeline}_eager"].open(sources, 1)
    assert isinstance(ours, Exported)
    assert isinstance(peer, Eager)
    assert specs[f"{pipeline}_eager"].same_network == pipeline
    with torch.inference_mode():
        probabilities = peer.model(torch.from_numpy(clips)).digit_logits.softmax(dim=1).numpy()
    np.testing.assert_allclose(probabilities, ours.classifier.probabilities(clips), atol=1e-5)
    assert peer.many(clips).tolist() == ours.many(clips).tolist() == [peer.one(clip) for clip in clips]
    wav = io.BytesIO()
    soundfile.write(wav, clips[1], SAMPLE_RATE, format="WAV", subtype="FLOAT")
    assert peer.file(wav.getvalue()) == ours.file(wav.getvalue()) == ours.one(clips[1])
    assert 0.1 < peer.megabytes < 2


def test_a_recogniser_says_which_packages_it_lacks() -> None:
    spec = RecogniserSpec("x", "X", lambda sources, threads: Exported(sources, "mfcc", threads), ("numpy", "no_such"))
    assert spec.missing == ("no_such",)
    assert recognisers()["mfcc"].missing == ()
