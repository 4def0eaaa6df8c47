"""The spotter: the network as a stream, strings and their labels, training that goes on, the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from digit_detector.classifier import model_file
from digit_detector.errors import CheckpointError, Interrupted, ModelError
from digit_detector.labels import PRETRAINED
from digit_detector.spotter_file import BLOCK, HOP, dilations_of, spotter_metadata
from digit_detector.streaming.spotter import Spotter as Answering
from ml_training.config import AugmentationConfig
from ml_training.data.corpus import NOT_A_DIGIT, Corpus
from ml_training.spotter.data import SENTENCES, SpotterData, load_spotter_data
from ml_training.spotter.export import export_spotter
from ml_training.spotter.model import NOTHING, Spotter
from ml_training.spotter.scene import Scene, heard
from ml_training.spotter.strings import SAMPLES, Digit, in_one, joined_string
from ml_training.spotter.targets import SAYS, UNTOLD, targets
from ml_training.spotter.training import FRAMES, SpotterConfig, Told, batch, train_spotter
from ml_training.spotter.words import Said, edges, joined_words, varied


@pytest.fixture(scope="module")
def material(tiny_corpus: Corpus) -> SpotterData:
    return load_spotter_data(tiny_corpus, np.arange(len(tiny_corpus.labels)), None, None, variants=1, voices=2)


@pytest.fixture(scope="module")
def spotter() -> Spotter:
    torch.manual_seed(0)
    model = Spotter(channels=16, dilations=(1, 2))
    model.train()
    with torch.no_grad():  # batch norms that do something
        for _ in range(3):
            model(0.1 * torch.randn(4, 16 * BLOCK))
    return model.eval()


def sound(count: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(count)).astype(np.float32)


def test_pieces_are_heard_as_the_whole_is(spotter: Spotter):
    whole = torch.from_numpy(sound(40 * BLOCK)[None].repeat(2, axis=0))
    with torch.no_grad():
        expected, state, said = spotter(whole).logits, spotter.quiet(2), []
        for size in (BLOCK, 3 * HOP, 5 * BLOCK, HOP, 40 * BLOCK):
            at = sum(part.shape[1] for part in said) * HOP
            ended, state = spotter.step(whole[:, at : at + size], state)
            said.append(ended.logits)
    assert torch.allclose(torch.cat(said, dim=1), expected, atol=1e-5)


def test_nothing_is_known_of_what_comes(spotter: Spotter):
    one, other = sound(20 * BLOCK), sound(20 * BLOCK)
    other[10 * BLOCK :] = 0.5
    with torch.no_grad():
        a, b = (spotter(torch.from_numpy(x[None])).logits[0] for x in (one, other))
    assert torch.allclose(a[:20], b[:20], atol=1e-5)
    assert not torch.allclose(a[20:], b[20:], atol=1e-2)


def test_the_file_answers_as_the_network_does(spotter: Spotter, tmp_path: Path):
    file = tmp_path / "spotter.onnx"
    export_spotter(spotter, file, spotter_metadata("test", "hash", 1, 0), sound(40 * BLOCK))
    answering = Answering(file)
    states = [answering.initial_state() for _ in range(3)]
    streams = np.stack([sound(40 * BLOCK, seed) for seed in range(3)])  # more than once around the ring of its past
    said, durations = [], []
    for at in range(0, streams.shape[1], BLOCK):
        probabilities, lasted = answering(streams[:, at : at + BLOCK], states)
        said.append(probabilities)
        durations.append(lasted)
    with torch.no_grad():
        expected = spotter(torch.from_numpy(streams))
    assert np.allclose(np.concatenate(said, axis=1), expected.logits.softmax(2)[..., :NOTHING], atol=1e-5)
    assert np.allclose(np.concatenate(durations, axis=1), expected.frames.exp() - 1, atol=1e-4)
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "damaged.onnx").write_bytes(bytes(damaged))
    with pytest.raises(ModelError):
        Answering(tmp_path / "damaged.onnx")
    with pytest.raises(ModelError, match="is no spotter"):
        Answering(model_file(PRETRAINED, "mfcc"))


def test_joined_spotters_say_the_mean(spotter: Spotter, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from ml_training.train_spotter import main

    torch.manual_seed(1)
    other, narrow = Spotter(channels=16, dilations=(3,)).eval(), Spotter(channels=8, dilations=(1,)).eval()
    files = [tmp_path / "one.onnx", tmp_path / "other.onnx", tmp_path / "narrow.onnx"]
    for model, file, seed in ((spotter, files[0], 3), (other, files[1], 4), (narrow, files[2], 5)):
        export_spotter(model, file, spotter_metadata("tiny", "tiny", 100, seed), sound(8 * BLOCK))
    both = tmp_path / "both.onnx"
    assert main(["--join", *map(str, files[:2]), "--out", str(both)]) == 0
    parts, joined = [Answering(file) for file in files[:2]], Answering(both)
    assert joined.metadata["seed"] == "3 + 4"
    assert joined.metadata["dilations"] == "1,2,3"
    heard = sound(60 * BLOCK).reshape(30, 2, BLOCK)
    states = [[part.initial_state(), part.initial_state()] for part in (*parts, joined)]
    for blocks in heard:
        said = [part(blocks, state) for part, state in zip((*parts, joined), states, strict=True)]
        for i in (0, 1):
            assert np.allclose((said[0][i] + said[1][i]) / 2, said[2][i], atol=1e-6)

    assert main(["--join", *map(str, files), "--out", str(both)]) != 0
    told = capsys.readouterr().err
    assert "as many channels, got [8, 16]" in told
    files[1].write_bytes(files[1].read_bytes()[:-9] + b"otherwise")
    assert main(["--join", *map(str, files[:2]), "--out", str(both)]) != 0
    assert "is damaged: its checksum" in capsys.readouterr().err
    files[1].write_bytes(files[1].read_bytes()[:3000])
    assert main(["--join", *map(str, files[:2]), "--out", str(both)]) != 0
    assert main(["--join", str(files[0])]) != 0
    told = capsys.readouterr().err
    assert "is damaged or no ONNX model" in told
    assert "two spotters or more, got 1" in told


def test_the_one_that_ships_is_of_this_network():
    from digit_detector.streaming.spotter import load_spotter as shipped

    assert dilations_of(shipped().metadata) == Spotter().dilations


def test_words_are_varied_but_the_first_time_around(tiny_corpus: Corpus):
    said = Said(
        tiny_corpus.waveforms[:20], tiny_corpus.lengths[:20], tiny_corpus.labels[:20], tiny_corpus.speakers[:20]
    )
    config = AugmentationConfig(tract_probability=1.0, pitch_probability=1.0, trim_probability=0.0)
    words = varied(said, 2, replace(config, speed=(1.0, 1.0)), 0)
    assert len(words) == 40
    assert words.labels.tolist() == [*said.labels.tolist()] * 2
    first, again = words.word(3), words.word(23)
    assert np.abs(np.corrcoef(first[:1000], again[:1000])[0, 1]) < 0.9
    for i in (0, 25):
        level, begin, end = edges(words.word(i))
        assert level == pytest.approx(1.0, abs=0.02)
        assert (begin, end) == (words.begins[i], words.ends[i])
    same = varied(said, 2, replace(config, speed=(1.0, 1.0)), 0)
    assert np.array_equal(same.samples, words.samples)


def test_silence_is_no_word():
    clips = [np.zeros(4000, dtype=np.float32), sound(4000)]
    assert joined_words(clips, np.array([1, 2]), np.array([0, 0])).labels.tolist() == [2]


def test_digits_of_a_string_lie_where_it_says(material: SpotterData):
    rng = np.random.default_rng(0)
    digits = 0
    for _ in range(60):
        string = joined_string(material.pool, rng)
        assert len(string.samples) == SAMPLES
        for label, begin, end in string.digits:
            assert 0 <= label < 10
            assert begin < end
            inside = string.samples[max(0, begin) : max(0, end)]
            digits += 1
            if len(inside) > 400:
                assert np.abs(inside).max() > 0.1
        ends = [digit.end for digit in string.digits]
        assert ends == sorted(ends)
    assert digits > 100


def test_what_is_said_in_one_breath_is_cut_where_words_begin():
    tone = np.sin(np.arange(6000) * 0.3).astype(np.float32)
    utterance = in_one(tone, np.array([0, 2000, 4000]), [4, NOT_A_DIGIT, 7])
    assert utterance is not None
    assert [digit.label for digit in utterance.digits] == [4, 7]
    assert abs(utterance.digits[1].begin - 4000) <= 80
    assert in_one(tone, np.array([0, 2000]), [1, 2, 3]) is None
    assert in_one(tone, np.array([0, 100, 4000]), [1, 2, 3]) is None


def test_sentences_hold_no_digit():
    words = {word for sentence in SENTENCES for word in sentence.lower().split()}
    assert not words & {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "oh"}


def test_frames_after_a_digit_say_it():
    classes, durations = targets([Digit(7, 4000, 8000)], 128)
    after = ((np.arange(128) + 1) * HOP - 8000) / 8000
    says = (after >= SAYS[0]) & (after < SAYS[1])
    assert (classes[says] == 7).all()
    assert set(classes[~says].tolist()) == {NOTHING, UNTOLD}
    assert (classes[after < -0.1] == NOTHING).all()
    first = np.flatnonzero(says)[0]
    assert np.expm1(durations[first]) == pytest.approx(((first + 1) * HOP - 4000) / HOP, rel=1e-5)
    assert (targets([Digit(7, -3000, 500)], 128)[0] != 7).all()  # most of it was before the string


def test_a_scene_keeps_the_length_and_stays_in_range(material: SpotterData):
    torch.manual_seed(0)
    strings = torch.from_numpy(
        np.stack([joined_string(material.pool, np.random.default_rng(i)).samples for i in range(8)])
    )
    everywhere = torch.ones(strings.shape, dtype=torch.bool)
    made, silent = heard(strings, everywhere, material.noises, Scene(wordless=0.5, rooms=1.0, telephone=0.5))
    assert made.shape == strings.shape
    assert made.abs().max() <= 1.0
    assert torch.isfinite(made).all()
    assert 0 < int(silent.sum()) < 8


class Stop:
    """Asks to stop once so many batches were seen."""

    def __init__(self, after: int) -> None:
        self.looks, self.after = 0, after

    @property
    def signum(self) -> int | None:
        self.looks += 1
        return 2 if self.looks >= self.after else None


def test_a_training_that_was_stopped_ends_with_the_same_weights(
    material: SpotterData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = SpotterConfig(steps=6, batch_size=2)
    whole = train_spotter(material, config, tmp_path / "whole", lambda told: None)
    told: list[Told] = []
    with pytest.raises(Interrupted):
        train_spotter(material, config, tmp_path / "parts", told.append, stop=Stop(3))
    assert told[-1].step == 3
    parts = train_spotter(material, config, tmp_path / "parts", told.append)
    assert told[-1].step == 6
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, parts.state_dict()[name]), name
    with pytest.raises(CheckpointError, match="other settings"):
        train_spotter(material, replace(config, seed=1), tmp_path / "parts", told.append)
    torch.save({"epoch": 3}, tmp_path / "parts" / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="other settings"):
        train_spotter(material, config, tmp_path / "parts", told.append)
    (tmp_path / "parts" / "checkpoint.pt").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="is damaged"):
        train_spotter(material, config, tmp_path / "parts", told.append)


def test_a_step_follows_from_its_number(material: SpotterData):
    config = SpotterConfig(batch_size=3)
    a, b = batch(material, config, Scene(), 5), batch(material, config, Scene(), 5)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert a[0].shape == (3, SAMPLES)
    assert a[1].shape == a[2].shape == (3, FRAMES)
    assert not torch.equal(a[0], batch(material, config, Scene(), 6)[0])


@pytest.mark.parametrize("words", [["--out", "."], ["--work", "file"], ["--voices", "0"], ["--threads", "0"]])
def test_the_door_refuses_before_it_trains(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from ml_training import train_spotter as door

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert door.main(["--dataset", "synthetic", *words]) == 2
    assert f"{words[0][2:]}: " in capsys.readouterr().err


def test_the_door_trains_and_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from ml_training import train_spotter as door

    out = tmp_path / "spotter.onnx"
    words = ["--dataset", "synthetic", "--voices", "1", "--variants", "1", "--steps", "2", "--batch_size", "2"]
    assert door.main([*words, "--work", str(tmp_path / "work"), "--out", str(out)]) == 0
    session = onnxruntime.InferenceSession(out.read_bytes())
    assert session.get_modelmeta().custom_metadata_map["steps"] == "2"
    assert "step 2 of 2" in capsys.readouterr().err
