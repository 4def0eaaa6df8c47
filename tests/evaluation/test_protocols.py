"""Protocols on an exported model: what they count, what they refuse, what they say of themselves."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import ml_training
from digit_detector import classifier
from digit_detector.errors import DataError, ModelError
from digit_detector.labels import MFCC
from digit_detector.model_file import git_commit, model_metadata
from ml_training.config import TrainConfig
from ml_training.data.corpus import Corpus
from ml_training.data.dataset_loader import load_corpus, load_folder
from ml_training.deploy.export import export_onnx
from ml_training.evaluation import perturbations, protocols
from ml_training.evaluation.protocols import TestClips, load_models
from ml_training.pipelines.base import Heard
from ml_training.results import ProtocolResult


@pytest.fixture(scope="module")
def heard_wrong(tiny_corpus: Corpus) -> TestClips:
    """The tiny corpus with three labels that are not what is said, under another hash."""
    labels = tiny_corpus.labels.copy()
    labels[[0, 60, 61]] = (labels[[0, 60, 61]] + 1) % 10
    return TestClips(dataclasses.replace(tiny_corpus, labels=labels, data_hash="other", name="others"), official=False)


def numbered(corpus: Corpus) -> Corpus:
    """As if recordings 0 to 4 had others beside them."""
    indices = np.where(corpus.indices < 2, corpus.indices, corpus.indices + 5)
    return dataclasses.replace(corpus, official_split=True, indices=indices)


def models_of(folder: Path, network: torch.nn.Module, corpus: Corpus, **said: object) -> Path:
    values = {"pipeline": MFCC, "data": "tiny", "data_hash": "tiny", "synthetic": True, "split": "official"}
    metadata = model_metadata(**{**values, "accuracy": 1.0, **said})  # type: ignore[arg-type]
    export_onnx(network, folder / f"{MFCC}_classifier" / "model.onnx", metadata, corpus.waveforms[:20])
    return folder


def test_strangers_are_counted_by_speaker_and_digit(tiny_models: Path, heard_wrong: TestClips) -> None:
    result = protocols.strangers(load_models([tiny_models], MFCC), heard_wrong)
    (found,) = result.scores
    assert (found.all.right, found.all.clips) == (197, 200)
    assert {name: n.clips - n.right for name, n in found.by_speaker.items()} == {
        "speaker0": 1, "speaker1": 2, "speaker2": 0, "speaker3": 0,
    }  # fmt: skip
    assert sum(n.clips - n.right for n in found.by_digit.values()) == 3
    assert {m["file"] for m in found.mistakes} == {heard_wrong.corpus.files[i] for i in (0, 60, 61)}
    low, high = found.all.interval
    assert (low, high) == (pytest.approx(0.9570, abs=1e-3), pytest.approx(0.9949, abs=1e-3))  # Wilson, by hand


def test_a_result_says_how_it_was_made(tiny_models: Path, heard_wrong: TestClips) -> None:
    result = protocols.strangers(load_models([tiny_models], MFCC), heard_wrong)
    assert (result.protocol, result.data, result.data_hash) == ("strangers", "others", "other")
    assert (result.version, result.git_commit) == (ml_training.__version__, git_commit())
    assert (result.clips, result.speakers, result.synthetic) == (200, 4, True)
    (card,) = result.models
    assert (card.pipeline, card.data_hash, card.seed) == (MFCC, "tiny", "unknown")
    assert len(card.sha256) == 64
    assert not Path(card.file).is_absolute()


def test_a_result_comes_back_from_json_as_it_was(tiny_models: Path, heard_wrong: TestClips) -> None:
    models = load_models([tiny_models], MFCC)
    for result in (protocols.calibrated(models, heard_wrong), protocols.noise(models, heard_wrong)):
        assert ProtocolResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_clips_a_model_was_trained_on_are_refused(tiny_models: Path, heard_wrong: TestClips) -> None:
    known = TestClips(dataclasses.replace(heard_wrong.corpus, data_hash="tiny"), official=False)
    models = load_models([tiny_models], MFCC)
    for protocol in (protocols.strangers, protocols.noise, protocols.calibrated):
        with pytest.raises(DataError, match=r"model\.onnx was trained on these very recordings \(tiny, hash tiny"):
            protocol(models, known)


def test_synthetic_voices_among_them_do_not_hide_the_recordings(
    tiny_network: torch.nn.Module, tiny_corpus: Corpus, heard_wrong: TestClips, tmp_path: Path
) -> None:
    folder = models_of(tmp_path, tiny_network, tiny_corpus, data_hash="mixed", recordings_hash="other")
    with pytest.raises(DataError, match="was trained on these very recordings"):
        protocols.strangers(load_models([folder], MFCC), heard_wrong)


def test_a_model_of_several_sources_is_refused_for_each_of_them(
    tiny_network: torch.nn.Module, tiny_corpus: Corpus, heard_wrong: TestClips, tmp_path: Path
) -> None:
    said = {"data_hash": "mixed", "recordings_hash": "first other", "split": "random"}
    models = load_models([models_of(tmp_path, tiny_network, tiny_corpus, **said)], MFCC)
    for name in ("first", "other"):
        clips = TestClips(dataclasses.replace(heard_wrong.corpus, data_hash=name), official=False)
        with pytest.raises(DataError, match="was trained on these very recordings"):
            protocols.strangers(models, clips)
    protocols.strangers(models, TestClips(dataclasses.replace(heard_wrong.corpus, data_hash="third"), official=False))


def test_an_official_part_beside_other_recordings_is_still_refused_by_another_split(
    tiny_network: torch.nn.Module, tiny_corpus: Corpus, tmp_path: Path
) -> None:
    """As evaluate.py makes it of a config with extra_dir: the corpus has a hash of its own, its sources tell."""
    both = dataclasses.replace(numbered(tiny_corpus), data_hash="both", sources=("tiny", "further"))
    for split, refused in (("random", True), ("official", False)):
        folder = models_of(tmp_path / split, tiny_network, tiny_corpus, split=split)
        models = load_models([folder], MFCC)
        if refused:
            with pytest.raises(DataError, match="has heard clips of the official test part"):
                protocols.official(models, protocols.official_part(both))
        else:
            assert protocols.official(models, protocols.official_part(both)).clips == 80


def test_of_two_folders_the_first_has_the_official_part_and_the_second_no_strangers(
    tiny_network: torch.nn.Module, tiny_corpus: Corpus, tiny_folder: Path, tmp_path: Path
) -> None:
    """What extra_dir means for evaluation, from files to refusals."""
    for name in ("main", "extra"):
        (tmp_path / name).mkdir()
    for file in tiny_folder.iterdir():
        digit, speaker, index = file.stem.split("_")
        number = int(index) if int(index) < 2 else int(index) + 5
        where = tmp_path / ("extra" if speaker == "speaker3" else "main")
        shutil.copyfile(file, where / f"{digit}_{speaker}_{number}.wav")
    main, extra = load_folder(tmp_path / "main"), load_folder(tmp_path / "extra")
    config = TrainConfig(dataset="folder", data_dir=str(tmp_path / "main"), extra_dir=str(tmp_path / "extra"))
    both = load_corpus(config)
    said = {"data_hash": both.data_hash, "recordings_hash": " ".join(both.recordings)}
    models = load_models([models_of(tmp_path / "models", tiny_network, tiny_corpus, **said)], MFCC)
    for corpus in (main, both):
        result = protocols.official(models, protocols.official_part(corpus))
        assert (result.clips, result.speakers) == (60, 3)
    for corpus in (main, extra):
        with pytest.raises(DataError, match=rf"was trained on these very recordings .*{corpus.data_hash[:12]}"):
            protocols.strangers(models, TestClips(corpus, official=False))


def test_models_that_come_along_are_found_by_their_word(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pretrained").mkdir()
    shutil.copyfile(tiny_models / "mfcc_classifier" / "model.onnx", tmp_path / "pretrained" / "mfcc.onnx")
    monkeypatch.setattr(classifier, "__file__", str(tmp_path / "classifier.py"))
    said: list[str] = []
    for pipeline in (MFCC, "all"):
        (model,) = load_models(["pretrained"], pipeline, said.append)
        assert model.card.file.endswith("pretrained/mfcc.onnx")
    assert said == ["pretrained holds no trained mel_cnn and no raw_cnn: left out"]


def test_the_official_part_is_recordings_0_to_4_and_nothing_else(tiny_models: Path, tiny_corpus: Corpus) -> None:
    clips = protocols.official_part(numbered(tiny_corpus))
    assert set(clips.corpus.indices.tolist()) == {0, 1}
    result = protocols.official(load_models([tiny_models], MFCC), clips)
    assert (result.scores[0].all.clips, result.data_hash) == (80, "tiny")
    assert "recordings 0 to 4" in result.definition
    with pytest.raises(DataError, match="has no official test part"):
        protocols.official_part(tiny_corpus)


def test_the_official_part_refuses_a_model_of_another_split(
    tiny_network: torch.nn.Module, tiny_corpus: Corpus, tmp_path: Path
) -> None:
    models = load_models([models_of(tmp_path, tiny_network, tiny_corpus, split="random")], MFCC)
    with pytest.raises(DataError, match="with split 'random', so it has heard clips of the official test part"):
        protocols.official(models, protocols.official_part(numbered(tiny_corpus)))


def test_all_takes_what_is_there_and_says_what_is_not(tiny_models: Path, tmp_path: Path) -> None:
    said: list[str] = []
    assert [m.card.pipeline for m in load_models([tiny_models], "all", said.append)] == [MFCC]
    assert "no trained mel_cnn and no raw_cnn" in said[0]
    with pytest.raises(ModelError, match="no folder"):
        load_models([tmp_path / "nowhere"], "all")


def test_models_of_one_seed_are_told_apart(
    tiny_models: Path, tiny_network: torch.nn.Module, tiny_corpus: Corpus, tmp_path: Path
) -> None:
    seeded = models_of(tmp_path, tiny_network, tiny_corpus, seed=3)
    assert [m.card.seed for m in load_models([tiny_models, seeded], MFCC)] == ["unknown", "3"]
    again = load_models([seeded, tiny_models, seeded], MFCC)
    assert again[0].card.seed == f"3 {again[0].card.sha256[:6]}"
    assert again[1].card.seed == "unknown"


def test_noise_makes_one_curve_a_kind_and_model_that_starts_clean(tiny_models: Path, heard_wrong: TestClips) -> None:
    result = protocols.noise(load_models([tiny_models], MFCC), heard_wrong, seed=4)
    assert {c.kind for c in result.curves} == {
        "white", "pink", "brown", "band", "clipping", "reverberation", "speed", "level", "place",
    }  # fmt: skip
    for curve in result.curves:
        assert (curve.points[0].severity, curve.points[0].count.right) == (None, 197)
        assert all(point.count.clips == 200 for point in curve.points)
    white = next(c for c in result.curves if c.kind == "white")
    assert [point.label for point in white.points] == ["clean", "20 dB", "10 dB", "5 dB", "0 dB", "-5 dB"]
    assert white.points[-1].count.right < 197
    assert result.details is not None
    assert (result.details["noise_seed"], result.details["word_db"]) == (4, 30.0)


def test_recorded_noise_names_file_and_place_for_each_clip(
    tiny_models: Path, heard_wrong: TestClips, tiny_folder: Path
) -> None:
    recordings = perturbations.load_recordings(tiny_folder)
    result = protocols.noise(load_models([tiny_models], MFCC), heard_wrong, recordings=recordings)
    assert result.details is not None
    drawn = result.details["noise_drawn"]
    assert [which["clip"] for which in drawn] == list(heard_wrong.corpus.files)
    assert {which["file"] for which in drawn} <= set(recordings.files)
    assert any(c.kind == "recorded" for c in result.curves)


def test_calibration_before_takes_back_the_temperature_of_the_graph(
    tiny_network: torch.nn.Module, tiny_corpus: Corpus, heard_wrong: TestClips, tmp_path: Path
) -> None:
    class Halved(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = tiny_network

        def forward(self, waveforms: torch.Tensor) -> Heard:
            scores, digit = self.network(waveforms)
            return Heard(scores / 2.0, digit)

    plain = load_models([models_of(tmp_path / "plain", tiny_network, tiny_corpus)], MFCC)
    divided = load_models([models_of(tmp_path / "divided", Halved(), tiny_corpus, temperature=2.0)], MFCC)
    without = protocols.calibrated(plain, heard_wrong).reliability
    before, after = protocols.calibrated(divided, heard_wrong).reliability
    assert (before.when, after.when, after.temperature) == ("before", "after", 2.0)
    assert before.ece == pytest.approx(without[0].ece, abs=1e-3)
    assert before.nll == pytest.approx(without[0].nll, abs=1e-3)
    assert after.ece > before.ece + 0.01


def test_a_folder_on_disk_is_scored_like_the_corpus(tiny_models: Path, tiny_folder: Path) -> None:
    clips = TestClips(load_folder(tiny_folder), official=False)
    (found,) = protocols.strangers(load_models([tiny_models], MFCC), clips).scores
    assert found.all.right >= 198
