"""Protocols on an exported model: counts, refusals and provenance."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import ml_training
from digit_detector import classifier
from digit_detector.errors import DataError, ModelError
from digit_detector.labels import MFCC
from digit_detector.model_file import git_commit, model_metadata
from ml_training.config import TrainConfig
from ml_training.data.dataset_loader import load_corpus, load_folder
from ml_training.deploy.export import export_onnx
from ml_training.evaluation import protocols
from ml_training.evaluation.perturbations import load_recordings
from ml_training.evaluation.protocols import (
    GENERATED_KINDS,
    NonDigitSet,
    TestClips,
    generate_non_digits,
    load_models,
    load_non_digits,
    official_part,
    score_calibration,
    score_noise,
    score_official,
    score_rejection,
    score_unseen_speakers,
)
from ml_training.pipelines.base import ModelOutput
from ml_training.results import ModelCard, ProtocolResult


@pytest.fixture(scope="module")
def mislabelled(tiny_corpus):
    """The tiny corpus with three wrong labels, under another hash."""
    labels = tiny_corpus.labels.copy()
    labels[[0, 60, 61]] = (labels[[0, 60, 61]] + 1) % 10
    return TestClips(dataclasses.replace(tiny_corpus, labels=labels, data_hash="other", name="others"), official=False)


@pytest.fixture(scope="module")
def models(tiny_models):
    return load_models([tiny_models], MFCC)


def renumber(corpus):
    """A corpus with an official test part: recordings 0 and 1."""
    indices = np.where(corpus.indices < 2, corpus.indices, corpus.indices + 5)
    return dataclasses.replace(corpus, official_split=True, indices=indices)


def export(folder, network, corpus, **changes):
    values = {"pipeline": MFCC, "data": "tiny", "data_hash": "tiny", "synthetic": True, "split": "official"}
    metadata = model_metadata(**{**values, "accuracy": 1.0, **changes})  # type: ignore[arg-type]
    export_onnx(network, folder / f"{MFCC}_classifier" / "model.onnx", metadata, corpus.waveforms[:20])
    return load_models([folder], MFCC)


def test_unseen_speakers_are_counted_by_speaker_and_digit(models, mislabelled):
    result = score_unseen_speakers(models, mislabelled)
    (score,) = result.scores
    assert (score.all.right, score.all.clips) == (197, 200)
    assert [count.clips - count.right for count in score.by_speaker.values()] == [1, 2, 0, 0]
    assert sum(count.clips - count.right for count in score.by_digit.values()) == 3
    assert {clip.file for clip in score.misclassified} == {mislabelled.corpus.files[i] for i in (0, 60, 61)}
    assert score.all.interval == pytest.approx((0.9570, 0.9949), abs=1e-3)  # Wilson, by hand
    assert (result.protocol, result.data, result.data_hash) == ("unseen_speakers", "others", "other")
    assert (result.version, result.git_commit) == (ml_training.__version__, git_commit())
    assert (result.clips, result.speakers, result.synthetic) == (200, 4, True)
    (card,) = result.models
    assert (card.pipeline, card.data_hash, card.seed, len(card.sha256)) == (MFCC, "tiny", "unknown", 64)
    assert not Path(card.file).is_absolute()


def test_the_official_part_is_recordings_0_to_4(models, tiny_corpus):
    clips = official_part(renumber(tiny_corpus))
    assert set(clips.corpus.indices.tolist()) == {0, 1}
    result = score_official(models, clips)
    assert (result.scores[0].all.clips, result.data_hash) == (80, "tiny")
    assert "recordings 0 to 4" in result.definition
    with pytest.raises(DataError, match="has no official test part"):
        official_part(tiny_corpus)


def test_clips_of_the_training_are_refused(tiny_network, tiny_corpus, mislabelled, tmp_path):
    changes = {"data_hash": "mixed", "recordings_hash": "first other", "split": "random"}
    models = export(tmp_path, tiny_network, tiny_corpus, **changes)
    for name in ("first", "other"):
        clips = TestClips(dataclasses.replace(mislabelled.corpus, data_hash=name), official=False)
        for score in (score_unseen_speakers, score_noise, score_calibration, lambda m, c: score_rejection(m, c, [])):
            with pytest.raises(DataError, match=r"model\.onnx was trained on these very recordings \(tiny, hash"):
                score(models, clips)
    score_unseen_speakers(models, TestClips(dataclasses.replace(mislabelled.corpus, data_hash="third"), official=False))


@pytest.mark.parametrize("sources", [(), ("tiny", "further")])
def test_the_official_part_refuses_a_model_of_another_split(tiny_network, tiny_corpus, tmp_path, sources):
    clips = official_part(dataclasses.replace(renumber(tiny_corpus), sources=sources))
    assert score_official(export(tmp_path / "a", tiny_network, tiny_corpus), clips).clips == 80
    with pytest.raises(DataError, match="with split 'random', which contains clips of the official test part"):
        score_official(export(tmp_path / "b", tiny_network, tiny_corpus, split="random"), clips)


def test_with_extra_data_the_first_folder_has_the_official_part(tiny_network, tiny_corpus, tiny_folder, tmp_path):
    for name in ("main", "extra"):
        (tmp_path / name).mkdir()
    for file in tiny_folder.iterdir():
        digit, speaker, index = file.stem.split("_")
        number = int(index) if int(index) < 2 else int(index) + 5
        folder = tmp_path / ("extra" if speaker == "speaker3" else "main")
        shutil.copyfile(file, folder / f"{digit}_{speaker}_{number}.wav")
    main, extra = load_folder(tmp_path / "main"), load_folder(tmp_path / "extra")
    config = TrainConfig(dataset="folder", data_dir=str(tmp_path / "main"), extra_digits_dir=str(tmp_path / "extra"))
    both = load_corpus(config)
    changes = {"data_hash": both.data_hash, "recordings_hash": " ".join(both.recordings)}
    models = export(tmp_path / "models", tiny_network, tiny_corpus, **changes)
    for corpus in (main, both):
        result = score_official(models, official_part(corpus))
        assert (result.clips, result.speakers) == (60, 3)
    for corpus in (main, extra):
        with pytest.raises(DataError, match=rf"was trained on these very recordings .*{corpus.data_hash[:12]}"):
            score_unseen_speakers(models, TestClips(corpus, official=False))


def test_models_of_folders_are_found_and_distinguished(tiny_models, tiny_network, tiny_corpus, tmp_path, monkeypatch):
    (tmp_path / "pretrained").mkdir()
    shutil.copyfile(tiny_models / "mfcc_classifier" / "model.onnx", tmp_path / "pretrained" / "mfcc.onnx")
    monkeypatch.setattr(classifier, "__file__", str(tmp_path / "classifier.py"))
    for folder, file in (("pretrained", "pretrained/mfcc.onnx"), (tiny_models, "models/mfcc_classifier/model.onnx")):
        lines: list[str] = []
        (model,) = load_models([folder], "all", lines.append)
        assert model.card.file.endswith(file)
        assert lines == [f"{folder} holds no trained mel_cnn and no raw_cnn: left out"]
    with pytest.raises(ModelError, match="no folder"):
        load_models([tmp_path / "nowhere"], "all")
    export(tmp_path, tiny_network, tiny_corpus, seed=3)
    assert [m.card.seed for m in load_models([tiny_models, tmp_path], MFCC)] == ["unknown", "3"]
    again = load_models([tmp_path, tiny_models, tmp_path], MFCC)
    assert [m.card.seed for m in again] == [f"3 {again[0].card.sha256[:6]}", "unknown", f"3 {again[0].card.sha256[:6]}"]


def test_noise_makes_one_curve_for_each_kind_and_model(models, mislabelled, tiny_folder):
    recordings = load_recordings(tiny_folder)
    result = score_noise(models, mislabelled, seed=4, recordings=recordings)
    assert [curve.kind for curve in result.curves] == [
        "white", "pink", "brown", "recorded", "band", "clipping", "reverberation", "speed", "level", "place",
    ]  # fmt: skip
    for curve in result.curves:
        assert (curve.points[0].severity, curve.points[0].count.right) == (None, 197)
        assert all(point.count.clips == 200 for point in curve.points)
    white = result.curves[0]
    assert [point.label for point in white.points] == ["clean", "20 dB", "10 dB", "5 dB", "0 dB", "-5 dB"]
    assert white.points[-1].count.right < 197
    assert result.details is not None
    assert (result.details["noise_seed"], result.details["word_db"]) == (4, 30.0)
    drawn = result.details["noise_drawn"]
    assert [piece["clip"] for piece in drawn] == list(mislabelled.corpus.files)
    assert {piece["file"] for piece in drawn} <= set(recordings.files)
    assert ProtocolResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_calibration_before_undoes_the_temperature_of_the_graph(tiny_network, tiny_corpus, mislabelled, tmp_path):
    class Halved(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = tiny_network

        def forward(self, waveforms):
            scores, digit = self.network(waveforms)
            return ModelOutput(scores / 2.0, digit)

    plain = score_calibration(export(tmp_path / "plain", tiny_network, tiny_corpus), mislabelled).reliability
    divided = score_calibration(export(tmp_path / "divided", Halved(), tiny_corpus, temperature=2.0), mislabelled)
    before, after = divided.reliability
    assert (before.when, after.when, after.temperature) == ("before", "after", 2.0)
    assert (before.ece, before.nll) == pytest.approx((plain[0].ece, plain[0].nll), abs=1e-3)
    assert after.ece > before.ece + 0.01
    assert ProtocolResult.from_dict(json.loads(json.dumps(divided.to_dict()))) == divided


def measure(digits, others, kind="words"):
    card = ModelCard(MFCC, "0", "m", "f" * 64, "tiny", "h", "official", "1", "c", 1.0)
    return protocols.measure_rejection(card, kind, np.float32(others), np.float32(digits))


def test_the_area_is_the_probability_that_a_digit_scores_higher():
    # 0.7: two digits higher; 0.6: two, and one as high, which counts half; 0.1: all four.
    assert measure([0.9, 0.8, 0.6, 0.2], [0.7, 0.6, 0.1]).area == pytest.approx((2 + 2.5 + 4) / 12)
    assert measure([0.9, 0.8], [0.1, 0.2, 0.3]).area == 1.0
    assert measure([0.1, 0.2], [0.9]).area == 0.0


def test_thresholds_accept_a_share_of_the_digits_and_the_curve_rises():
    digits = [i / 100 for i in range(101)]  # 95 % of them lie at 0.05 and above, 90 % at 0.1
    for others, accepted in (([0.045, 0.07, 0.3, 0.5, 0.7], [4, 3, 2]), (digits, [96, 91, 51])):
        found = measure(digits, others).accepted
        assert list(found) == ["95%", "90%", "score 0.5"]
        assert [(count.right, count.clips) for count in found.values()] == [(n, len(others)) for n in accepted]
    roc = measure([0.9, 0.8, 0.6, 0.2], [0.7, 0.6, 0.1]).roc
    assert (np.diff(roc, axis=0) >= 0).all()
    assert roc[0] == (0.0, 0.25), "the best digit alone"
    assert roc[-1] == (pytest.approx(2 / 3), 1.0), "every digit, and two that score higher than the worst"
    assert (pytest.approx(2 / 3), 0.75) in roc


def write(path, *parts):
    """A recording of tones: (seconds, level) one after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.concatenate([level * np.sin(np.arange(int(8000 * seconds))) for seconds, level in parts])
    soundfile.write(path, samples, 8000)


def test_recordings_become_clips_of_a_second_without_pauses(tmp_path):
    for name, seconds in (("a.wav", 0.3), ("inner/b.flac", 1.0), ("c.wav", 1.5)):
        write(tmp_path / "short" / name, (seconds, 0.3))
    (tmp_path / "short" / "notes.txt").write_text("no audio")
    (tmp_path / "short" / "._a.wav").write_bytes(b"as macOS leaves")
    short = load_non_digits("words", tmp_path / "short")
    assert (short.kind, short.waveforms.shape, short.waveforms.dtype) == ("words", (3, 8000), np.float32)
    assert short.source == "3 clips of 3 recordings in short"
    assert not short.waveforms[0][:2800].any(), "centred, as digits are"
    write(tmp_path / "long" / "a.wav", (3.2, 0.3))
    samples, _ = soundfile.read(tmp_path / "long" / "a.wav", dtype="float32")
    windows = load_non_digits("sentences", tmp_path / "long").waveforms
    np.testing.assert_array_equal(windows, [samples[4000 * i : 4000 * i + 8000] for i in range(5)])
    # The seconds at 0, 0.5, 3.5 and 4 hold some of the tone; those between nothing.
    write(tmp_path / "paused" / "a.wav", (1.0, 0.3), (3.0, 1e-3), (1.0, 0.3))
    assert len(load_non_digits("sentences", tmp_path / "paused").waveforms) == 4
    (tmp_path / "long" / "a.wav").write_bytes(b"no sound")
    for folder, expected in (("nowhere", "is not a folder"), ("long", r"a\.wav: .*not audio.*fix or remove it")):
        with pytest.raises(DataError, match=expected):
            load_non_digits("words", tmp_path / folder)


def test_non_digits_are_generated_from_the_digits_by_seed(tiny_corpus):
    before = tiny_corpus.waveforms.copy()
    first, again, other = (generate_non_digits(tiny_corpus, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(tiny_corpus.waveforms, before)
    assert tuple(each.kind for each in first) == GENERATED_KINDS[1:]
    assert all(each.waveforms.shape == (200, 8000) for each in first)
    halves, doubles, hiss = (each.waveforms for each in first)
    lengths = [(np.count_nonzero(clips, axis=1)).mean() for clips in (halves, tiny_corpus.waveforms, doubles)]
    assert lengths[0] < 0.6 * lengths[1] < lengths[1] < 0.7 * lengths[2]
    assert 20 * np.log10(np.sqrt(np.square(hiss).mean())) == pytest.approx(-60, abs=0.1)
    assert all(np.array_equal(a.waveforms, b.waveforms) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a.waveforms, b.waveforms) for a, b in zip(first, other, strict=True))


def test_every_kind_is_rejected_by_each_model(models, mislabelled):
    noise: Any = np.random.default_rng(0).normal(0, 0.1, (30, 8000)).astype(np.float32)
    result = score_rejection(models, mislabelled, [NonDigitSet("hiss", noise, "30 clips in hisses")], seed=3)
    kinds = {rejection.kind: rejection for rejection in result.rejections}
    assert list(kinds) == ["digits", "hiss", "cut off", "doubled", "silence"]
    assert {rejection.clips for kind, rejection in kinds.items() if kind != "hiss"} == {200}
    assert (kinds["hiss"].clips, kinds["hiss"].area, kinds["hiss"].accepted["score 0.5"].right) == (30, 1.0, 0)
    assert [count.right for count in kinds["digits"].accepted.values()][::2] == [190, 200]
    assert (kinds["digits"].area, result.scores[0].all.right) == (0.5, 197)
    assert result.details is not None
    assert result.details["noise_seed"] == 3
    assert result.details["others"]["hiss"] == "30 clips in hisses"
    assert ProtocolResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
