"""Training data of the acoustic model: tokens, sources, joined words, batches, scenes, texts."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from digit_detector.acoustic_file import BLOCK, TOKENS
from digit_detector.audio import SAMPLE_RATE
from digit_detector.errors import ConfigError, DataError
from ml_training.acoustic.dataset import (
    AcousticData,
    Source,
    change_speed,
    draw_batch,
    draw_utterance,
    find_speech,
    load_acoustic_data,
    tokenize,
)
from ml_training.acoustic.scene import AcousticScene, render_scene
from ml_training.acoustic.texts import VOICES, write_texts
from ml_training.data.augmentation.noise import generated_noise_bank

from .conftest import SOURCES

NOISES = [(generated_noise_bank(), 1.0)]
PLAIN = AcousticScene(
    random_eq_db=0.0, tilt_db=0.0, reverb_probability=0.0, band_probability=0.0, telephone_probability=0.0,
    noise_probability=1.0, noise_only_probability=0.0, packet_loss_probability=0.0, echo_probability=0.0,
    output_peak_dbfs=(0.0, 0.0),
)  # fmt: skip


def names(tokens: list[int]) -> str:
    return " ".join(TOKENS[token] for token in tokens)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Zero, nine. OH double five", "zero nine oh double five"),
        ("treble 7 my number's", "triple seven other other"),
        ("3041", "three zero four one"),
        ("fifteen for two", "other other two"),
        ("", ""),
    ],
)
def test_texts_become_tokens(text: str, tokens: str) -> None:
    assert names(tokenize(text)) == tokens


def test_sources_select_recordings(corpora: Path, acoustic_data: AcousticData) -> None:
    words, strings = acoustic_data.corpora
    assert len(words.clips) == 150  # without speaker3
    assert len(words.by_speaker) == 3
    assert sorted(names(list(clip.tokens)) for clip in strings.clips)[0] == "five three seven"
    held_out = load_acoustic_data(corpora, [replace(SOURCES[1], hold_out=("1",))])
    assert len(held_out.corpora[0].clips) == 3
    assert held_out.data_hash != acoustic_data.data_hash
    chosen = load_acoustic_data(
        corpora, [replace(SOURCES[1], where={"speaker": ("speaker0",)}, include=("[0-2].wav",))]
    )
    assert len(chosen.corpora[0].clips) == 1
    for fault in (Source("none", "words", 1.0), replace(SOURCES[1], include=("x*",)), replace(SOURCES[1], table="no")):
        with pytest.raises(DataError):
            load_acoustic_data(corpora, [fault])
    with pytest.raises(ConfigError, match="words, utterances, sounds"):
        Source("words", "speech", 1.0)


def test_utterances_have_as_many_words_as_tokens(acoustic_data: AcousticData) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        samples, tokens = draw_utterance(acoustic_data, rng, 10 * SAMPLE_RATE)
        assert np.abs(samples).max() <= 1.1
        assert 0.08 < len(samples) / SAMPLE_RATE / len(tokens) < 1.6
        assert all(1 <= token <= 10 for token in tokens)


def test_a_batch_marks_its_speech(acoustic_data: AcousticData) -> None:
    again = [draw_batch(acoustic_data, 40.0, np.random.default_rng(3)) for _ in range(2)]
    sound, speech, tokens = again[0]
    assert np.array_equal(sound, again[1][0])
    assert sound.shape == (len(tokens), speech.shape[1] * BLOCK)
    loud = np.abs(sound).reshape(*speech.shape, BLOCK).max(axis=2) > 0.3
    assert speech[loud].mean() > 0.95
    assert speech[~loud].mean() < 0.5
    assert all(tokens)


def test_short_pauses_are_speech() -> None:
    tone = np.sin(np.arange(40 * BLOCK)).astype(np.float32)
    tone[10 * BLOCK : 13 * BLOCK] = 0.0
    tone[20 * BLOCK : 30 * BLOCK] = 0.0
    speech = find_speech(tone)
    assert speech[:20].all()
    assert not speech[21:29].any()
    assert not find_speech(np.zeros(100, dtype=np.float32)).size


def test_speed_changes_pitch() -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(16_000) / SAMPLE_RATE).astype(np.float32)
    faster = change_speed(tone, 1.5)
    assert np.abs(np.fft.rfft(faster)).argmax() * SAMPLE_RATE / len(faster) == pytest.approx(660, abs=3)
    assert change_speed(tone, 1.0) is tone


def tone_between_silence(count: int) -> torch.Tensor:
    samples = torch.zeros(count, 32_768)
    samples[:, 8000:16_000] = torch.sin(0.7 * torch.arange(8000) + 0.1)
    return samples


@pytest.mark.parametrize("snr_db", [20.0, 3.0, -2.0])
def test_a_scene_has_its_snr(snr_db: float) -> None:
    torch.manual_seed(0)
    clean = tone_between_silence(8)
    sound, _ = render_scene(clean, NOISES, replace(PLAIN, snr_db=(snr_db, snr_db)))
    gain = (sound * clean).sum(dim=1) / clean.square().sum(dim=1)  # least squares
    noise = sound - gain[:, None] * clean
    level = (gain[:, None] * clean).square().sum(dim=1) / 8000
    measured = 10 * torch.log10(level / noise.square().mean(dim=1))
    assert measured.median().item() == pytest.approx(snr_db, abs=0.7)
    assert (measured - snr_db).abs().max() < 2.0


def test_a_scene_varies_every_utterance_and_stays_in_range() -> None:
    torch.manual_seed(0)
    clean = tone_between_silence(300)
    scene = replace(AcousticScene(), noise_only_probability=0.2)
    sound, noise_only = render_scene(clean, NOISES, scene)
    assert torch.equal(sound, (sound * 2**15).round() / 2**15)
    assert noise_only.float().mean().item() == pytest.approx(0.2, abs=0.07)
    peaks = sound.abs().amax(dim=1)
    assert peaks.max() == 1.0
    assert peaks.min() < 0.02
    tone = (sound * clean).sum(dim=1).abs() / (clean.norm(dim=1) * sound.norm(dim=1))
    assert tone[noise_only].max() < 0.3
    quiet = replace(PLAIN, noise_probability=0.0)
    reverberant = replace(quiet, reverb_probability=1.0, drr_db=(0.0, 0.0))
    assert render_scene(clean[:1], NOISES, reverberant)[0][0, 16_050:16_200].abs().max() > 0.02
    echo = render_scene(clean[:1], NOISES, replace(quiet, echo_probability=1.0))[0]
    assert echo[0, 16_100:19_000].abs().max() > 0.1
    lossy = replace(quiet, packet_loss_probability=1.0, packet_loss=0.5)
    lost = (render_scene(clean[:20], NOISES, lossy)[0][:, 8000:16_000].reshape(20, 50, 160) == 0).all(dim=2)
    assert 0.1 < lost.float().mean() < 0.4
    loud = replace(quiet, output_peak_dbfs=(3.0, 3.0))
    assert (render_scene(clean[:1], NOISES, loud)[0].abs() == 1.0).sum() > 1000  # clipped


def test_texts_are_read_back_as_their_words(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_texts(tmp_path / name, 500, seed)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() != (tmp_path / "c").read_text()
    with (tmp_path / "a").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len({row["file"] for row in rows}) == 500
    assert all(set(row["speaker"].split("+")) <= set(VOICES) for row in rows)
    kinds = [set(names(tokenize(row["text"])).split()) for row in rows]
    assert 0.5 < np.mean(["other" not in kind for kind in kinds]) < 0.75
    assert all(word in set.union(*kinds) for word in TOKENS[1:])
