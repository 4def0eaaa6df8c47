"""Digits told from everything else: the measures by hand, what is heard of a recording, and a whole protocol."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from digit_detector.errors import DataError
from digit_detector.labels import MFCC
from ml_training.data.corpus import Corpus
from ml_training.evaluation.protocols import TestClips, TrainedModel, load_models
from ml_training.evaluation.rejection import OWN_KINDS, Others, load_others, made_of, rejection
from ml_training.results import ModelCard, ProtocolResult, Rejection

CARD = ModelCard(MFCC, "0", "m", "f" * 64, "tiny", "h", "official", "1", "c", 1.0)


def clips_of(scores: list[float]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Clips to which the model of `heard` gives these scores."""
    clips = np.zeros((len(scores), 8000), dtype=np.float32)
    clips[:, 0] = scores
    return clips


def heard(digits: list[float], others: list[float], kind: str = "words") -> Rejection:
    """What is found where a model gives digits and other clips these scores."""

    def hear(waveforms: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        return np.full((len(waveforms), 10), 0.1), waveforms[:, 0]

    classifier: Any = SimpleNamespace(predict_proba=hear, model_file=Path("model.onnx"), metadata={})
    count = len(digits)
    corpus = Corpus(
        name="made up", waveforms=clips_of(digits), lengths=np.full(count, 8000), labels=np.arange(count) % 10,
        speakers=("ann",) * count, indices=np.arange(count), files=tuple(map(str, range(count))), data_hash="d",
        synthetic=False, official_split=False,
    )  # fmt: skip
    given = [Others("words", clips_of(others), "made up")]
    result = rejection([TrainedModel(classifier, CARD)], TestClips(corpus, official=False), given)
    return next(found for found in result.rejections if found.kind == kind)


# --- measures ------------------------------------------------------------------------------------


def test_the_area_is_how_often_a_digit_scores_higher() -> None:
    # 0.7: two digits higher; 0.6: two, and one as high, which counts half; 0.1: all four.
    assert heard([0.9, 0.8, 0.6, 0.2], [0.7, 0.6, 0.1]).area == pytest.approx((2 + 2.5 + 4) / 12)
    assert heard([0.9, 0.8], [0.1, 0.2, 0.3]).area == 1.0
    assert heard([0.1, 0.2], [0.9]).area == 0.0
    assert heard([0.4, 0.6], [0.4, 0.6], kind="digits").area == 0.5


def test_others_are_counted_where_so_many_digits_pass() -> None:
    digits = [i / 100 for i in range(101)]  # 95 % of them lie at 0.05 and above, 90 % at 0.1
    others = [0.045, 0.07, 0.3, 0.5, 0.7]
    found = heard(digits, others)
    assert {name: (n.right, n.clips) for name, n in found.accepted.items()} == {
        "95%": (4, 5), "90%": (3, 5), "score 0.5": (2, 5)
    }  # fmt: skip
    own = heard(digits, others, kind="digits").accepted
    assert [own[name].right for name in ("95%", "90%", "score 0.5")] == [96, 91, 51]


def test_the_curve_rises_from_no_others_to_all_of_them() -> None:
    digits, others = [0.9, 0.8, 0.6, 0.2], [0.7, 0.6, 0.1]
    found = heard(digits, others)
    places, shares = np.array(found.roc).T
    assert (np.diff(places) >= 0).all()
    assert (np.diff(shares) >= 0).all()
    assert found.roc[0] == (0.0, 0.25), "the best digit alone"
    assert found.roc[-1] == (pytest.approx(2 / 3), 1.0), "every digit, and two that score higher than the worst"
    assert (pytest.approx(2 / 3), 0.75) in found.roc


# --- clips ---------------------------------------------------------------------------------------


def write(path: Path, *parts: tuple[float, float]) -> Path:
    """A recording of tones: (seconds, level) one after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.concatenate([level * np.sin(np.arange(int(8000 * seconds))) for seconds, level in parts])
    soundfile.write(path, samples, 8000)
    return path.parent


def test_a_short_recording_is_one_clip(tmp_path: Path) -> None:
    for name, seconds in (("a.wav", 0.3), ("inner/b.flac", 1.0), ("c.wav", 1.5)):
        write(tmp_path / name, (seconds, 0.3))
    (tmp_path / "notes.txt").write_text("no audio")
    (tmp_path / "._a.wav").write_bytes(b"as macOS leaves")
    others = load_others("words", tmp_path)
    assert others.kind == "words"
    assert others.waveforms.shape == (3, 8000)
    assert others.waveforms.dtype == np.float32
    assert others.source == f"3 clips of 3 recordings in {tmp_path.name}"
    assert not others.waveforms[0][:2800].any(), "centred, as digits are"


def test_a_long_recording_is_heard_by_seconds_that_overlap_by_half(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    write(path, (3.2, 0.3))
    others = load_others("sentences", tmp_path)
    samples, _ = soundfile.read(path, dtype="float32")
    assert len(others.waveforms) == 5
    for number, clip in enumerate(others.waveforms):
        np.testing.assert_array_equal(clip, samples[4000 * number : 4000 * number + 8000])
    assert others.source == f"5 clips of 1 recordings in {tmp_path.name}"


def test_pauses_of_a_long_recording_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "long.wav", (1.0, 0.3), (3.0, 1e-3), (1.0, 0.3))
    # The seconds at 0, 0.5, 3.5 and 4 hold some of the tone; those at 1, 1.5, 2, 2.5 and 3 nothing.
    assert len(load_others("sentences", tmp_path).waveforms) == 4


def test_a_folder_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is not a folder: expected one with recordings of words"):
        load_others("words", tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no audio: expected recordings of words"):
        load_others("words", tmp_path)
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    with pytest.raises(DataError, match=r"bad\.wav: .*not audio.*mend or remove it"):
        load_others("words", tmp_path)


def test_halves_doubles_and_silence_are_made_of_the_digits(tiny_corpus: Corpus) -> None:
    clips = TestClips(tiny_corpus, official=False)
    before = tiny_corpus.waveforms.copy()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    made = made_of(clips, seed=1)
    assert torch.equal(torch.rand(3), expected), "chance goes on as if nothing had been drawn"
    assert tuple(others.kind for others in made) == OWN_KINDS[1:]
    assert all(others.waveforms.shape == (200, 8000) for others in made)
    np.testing.assert_array_equal(tiny_corpus.waveforms, before)
    halves, doubles, hiss = (others.waveforms for others in made)
    lengths = [(np.count_nonzero(clips, axis=1)).mean() for clips in (halves, tiny_corpus.waveforms, doubles)]
    assert lengths[0] < 0.6 * lengths[1] < lengths[1] < 0.7 * lengths[2]
    assert 20 * np.log10(np.sqrt(np.square(hiss).mean())) == pytest.approx(-60, abs=0.1)
    again, other = made_of(clips, seed=1), made_of(clips, seed=2)
    assert all(np.array_equal(a.waveforms, b.waveforms) for a, b in zip(made, again, strict=True))
    assert not any(np.array_equal(a.waveforms, b.waveforms) for a, b in zip(made, other, strict=True))


# --- the protocol --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strangers(tiny_corpus: Corpus) -> TestClips:
    return TestClips(dataclasses.replace(tiny_corpus, data_hash="other", name="others"), official=False)


@pytest.fixture(scope="module")
def result(tiny_models: Path, strangers: TestClips) -> ProtocolResult:
    rng = np.random.default_rng(0)
    hiss = Others("hiss", rng.normal(0, 0.1, (30, 8000)).astype(np.float32), "30 clips of 30 recordings in hisses")
    return rejection(load_models([tiny_models], MFCC), strangers, [hiss], seed=3)


def test_every_kind_is_told_apart_by_each_model(result: ProtocolResult) -> None:
    found = {r.kind: r for r in result.rejections}
    assert list(found) == ["digits", "hiss", "cut off", "doubled", "silence"]
    assert {r.clips for kind, r in found.items() if kind != "hiss"} == {200}
    assert found["hiss"].clips == 30
    assert (found["hiss"].area, found["hiss"].accepted["score 0.5"].right) == (1.0, 0), "the tiny model knows noise"
    assert found["digits"].accepted["score 0.5"].right == 200
    assert found["digits"].accepted["95%"].right == 190
    assert result.scores[0].all.right == 200, "the digits themselves are scored too"


def test_the_result_says_how_it_was_made(result: ProtocolResult) -> None:
    assert (result.protocol, result.data, result.clips) == ("rejection", "others", 200)
    assert "95 and 90 %" in result.definition
    assert result.details is not None
    assert result.details["noise_seed"] == 3
    assert result.details["others"]["hiss"] == "30 clips of 30 recordings in hisses"


def test_it_comes_back_from_json_as_it_was(result: ProtocolResult) -> None:
    assert ProtocolResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_a_result_from_before_there_were_rejections_is_read(result: ProtocolResult) -> None:
    values = result.to_dict()
    del values["rejections"]
    assert ProtocolResult.from_dict(values).rejections == ()


def test_digits_that_a_model_was_trained_on_are_refused(tiny_models: Path, tiny_corpus: Corpus) -> None:
    models = load_models([tiny_models], MFCC)
    with pytest.raises(DataError, match="was trained on these very recordings"):
        rejection(models, TestClips(tiny_corpus, official=False), [])
