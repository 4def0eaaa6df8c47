"""Words, utterances, scenes and frame targets of the spotter's training data."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE
from digit_detector.errors import DataError
from digit_detector.spotter_file import HOP
from ml_training.data.corpus import NOT_A_DIGIT, Corpus
from ml_training.data.tts import VOICES, synthesize_words
from ml_training.spotter import dataset
from ml_training.spotter.dataset import SAMPLES, AcousticScene, SpotterData, WordBank, augment_words, render_scene
from ml_training.spotter.model import BACKGROUND, SpotterOutput
from ml_training.spotter.targets import IGNORE_INDEX, TARGET_WINDOW, Digit, count_frames, frame_targets, spotter_loss

PLAIN = AcousticScene(
    random_eq_db=0.0, tilt_db=0.0, reverb_probability=0.0, band_probability=0.0, telephone_probability=0.0,
    noise_probability=1.0, noise_only_probability=0.0, output_peak_dbfs=(0.0, 0.0),
)  # fmt: skip


@pytest.fixture(scope="module")
def bank(tiny_corpus: Corpus) -> WordBank:
    return augment_words(*clips_of(tiny_corpus), 2, 0)


def clips_of(corpus: Corpus) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], np.ndarray]:
    rows = slice(40, 60)  # of speaker0 and speaker1
    return corpus.waveforms[rows], corpus.lengths[rows], corpus.speakers[rows], corpus.labels[rows]


# --- words ---------------------------------------------------------------------------------------


def test_variants_but_the_first_have_another_voice(tiny_corpus: Corpus) -> None:
    config = replace(
        dataset.WORD_AUGMENTATION,
        speed=(1.0, 1.0),
        formant_shift_probability=1.0,
        pitch_probability=1.0,
        edge_crop_probability=0.0,
    )
    waveforms, lengths, _, labels = clips_of(tiny_corpus)
    bank, again = (augment_words(*clips_of(tiny_corpus), 2, 0, config) for _ in range(2))
    assert all(map(np.array_equal, bank.words, again.words))
    assert bank.labels.tolist() == labels.tolist() * 2
    clip = waveforms[3, (NUM_SAMPLES - lengths[3]) // 2 :][: lengths[3]]
    likeness = [np.correlate(word, clip, "full").max() / np.linalg.norm(word) for word in map(bank.word, (3, 23))]
    assert likeness[0] > 0.99 * np.linalg.norm(clip)
    assert likeness[1] < 0.9 * np.linalg.norm(clip)


def test_words_are_trimmed_and_scaled(bank: WordBank) -> None:
    assert len(bank) == 40
    assert sorted(map(len, bank.speaker_rows)) == [20, 20]
    for word in map(bank.word, range(len(bank))):
        frames = word[: len(word) // 80 * 80].reshape(-1, 80)
        assert np.sqrt(np.square(frames).mean(axis=1).max()) == pytest.approx(1.0, abs=0.02)
    silent = WordBank.from_clips([np.zeros(4000), bank.word(0)], np.array([1, 2]), np.array([0, 0]))
    assert silent.labels.tolist() == [2]


def test_corrupted_words_are_not_digits(bank: WordBank) -> None:
    corrupted = dataset.corrupt_words(bank, 3.0, 0)
    assert len(corrupted) == 120
    assert set(corrupted.labels) == {NOT_A_DIGIT}
    assert set(corrupted.speakers) == set(bank.speakers)
    cut_off = (np.array(list(map(len, corrupted.words))) < 0.6 * np.mean(list(map(len, bank.words)))).mean()
    assert 0.2 < cut_off < 0.6  # the others are reversed, or as long as the two words that they come from
    reverse = [word[::-1] / np.linalg.norm(word) for word in map(bank.word, range(len(bank)))]
    likeness = [
        max(np.correlate(word, other, "full").max() for other in reverse) / np.linalg.norm(word)
        for word in map(corrupted.word, range(60))
    ]
    assert 0.1 < (np.array(likeness) > 0.98).mean() < 0.6


def test_recorded_words_and_noise_are_used_and_hashed(tiny_corpus: Corpus, tmp_path: Path) -> None:
    words, noise, rows = tmp_path / "words", tmp_path / "noise", np.arange(20)
    words.mkdir()
    noise.mkdir()
    for i, clip in enumerate(synthesize_words([(VOICES[0], "kitchen"), (VOICES[1], "garden")], seed=0)):
        soundfile.write(words / f"word{i}_speaker{i}_0.wav", clip, SAMPLE_RATE)
        soundfile.write(noise / f"{i}.wav", 0.1 * np.random.default_rng(i).standard_normal(20_000), SAMPLE_RATE)
    plain, spoken, noisy = (
        dataset.load_spotter_data(tiny_corpus, rows, *folders, variants=1, voices=1)
        for folders in ((None, None), (str(words), None), (str(words), str(noise)))
    )
    assert len({data.data_hash for data in (plain, spoken, noisy)}) == 3
    assert [len(data.fillers) for data in (plain, spoken, noisy)] == [2, 4, 5]
    assert [len(data.noises) for data in (plain, spoken, noisy)] == [1, 1, 2]
    bursts = noisy.fillers[-1][0]
    assert set(bursts.labels) == {NOT_A_DIGIT}
    assert all(0.08 * SAMPLE_RATE < len(burst) < 1.1 * SAMPLE_RATE for burst in bursts.words)
    with pytest.raises(DataError):
        dataset.load_spotter_data(tiny_corpus, rows, str(tmp_path / "nowhere"), None, variants=1, voices=1)


# --- utterances ----------------------------------------------------------------------------------


def test_joined_words_have_the_shares_of_their_styles(spotter_data: SpotterData) -> None:
    rng = np.random.default_rng(0)
    utterances = [dataset.join_words(spotter_data, rng) for _ in range(400)]
    without = sum(not utterance.digits for utterance in utterances) / len(utterances)
    assert without == pytest.approx(sum(style.share for style in dataset.JOIN_STYLES if style.fillers == 1.0), abs=0.08)
    digits = [digit for utterance in utterances for digit in utterance.digits]
    counts = np.bincount([digit.label for digit in digits], minlength=10) / len(digits)
    assert np.allclose(counts, 0.1, atol=0.03)
    pairs = [pair for utterance in utterances for pair in itertools.pairwise(utterance.digits)]
    gaps = np.array([after.onset - before.offset for before, after in pairs]) / SAMPLE_RATE
    assert 0.4 < (gaps < 0.05).mean() < 0.8  # connected
    assert 0.1 < (gaps > 0.2).mean() < 0.5  # with pauses or other words between them


def test_digits_lie_where_an_utterance_says(spotter_data: SpotterData) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        utterance = dataset.join_words(spotter_data, rng)
        assert len(utterance.samples) == SAMPLES
        assert [digit.offset for digit in utterance.digits] == sorted(digit.offset for digit in utterance.digits)
        for label, onset, offset in utterance.digits:
            assert 0 <= label < 10
            assert onset < offset
            inside = utterance.samples[max(0, onset) : max(0, offset)]
            assert len(inside) <= 400 or np.abs(inside).max() > 0.1


def test_synthetic_utterances_are_digits_or_sentences(spotter_data: SpotterData) -> None:
    utterances = spotter_data.tts_utterances
    assert len(utterances) > 80
    assert 0.25 < np.mean([not utterance.digits for utterance in utterances]) < 0.6
    joined = dataset.join_utterances(utterances, np.random.default_rng(3))
    assert len(joined.samples) == SAMPLES
    silent = "".join("01"[int(zero)] for zero in joined.samples == 0).split("0")
    assert max(map(len, silent)) >= 0.1 * SAMPLE_RATE  # a pause between two utterances


# --- scenes --------------------------------------------------------------------------------------


def speech(count: int) -> torch.Tensor:
    """A tone between silence."""
    samples = torch.zeros(count, SAMPLES)
    samples[:, 8000:16_000] = torch.sin(0.7 * torch.arange(8000) + 0.1)
    return samples


@pytest.mark.parametrize("snr_db", [20.0, 3.0, -2.0])
def test_a_scene_has_the_snr_asked_for(spotter_data: SpotterData, snr_db: float) -> None:
    torch.manual_seed(0)
    clean = speech(8)
    sound, _ = render_scene(clean, spotter_data.noises, replace(PLAIN, snr_db=(snr_db, snr_db)))
    gain = (sound * clean).sum(dim=1) / clean.square().sum(dim=1)  # least squares
    noise = sound - gain[:, None] * clean
    level = (gain[:, None] * clean).square().sum(dim=1) / 8000
    measured = 10 * torch.log10(level / noise.square().mean(dim=1))
    assert measured.median().item() == pytest.approx(snr_db, abs=0.7)
    assert (measured - snr_db).abs().max() < 2.0


def test_a_scene_varies_every_utterance_and_stays_in_range(spotter_data: SpotterData) -> None:
    torch.manual_seed(0)
    clean = speech(400)
    sound, noise_only = render_scene(clean, spotter_data.noises, AcousticScene())
    assert sound.shape == clean.shape
    assert torch.isfinite(sound).all()
    assert torch.equal(sound, (sound * 2**15).round() / 2**15)
    assert noise_only.float().mean().item() == pytest.approx(AcousticScene().noise_only_probability, abs=0.05)
    peaks = sound.abs().amax(dim=1)
    assert peaks.max() == 1.0
    assert peaks.min() < 0.02
    tone = (sound * clean).sum(dim=1).abs() / (clean.norm(dim=1) * sound.norm(dim=1))
    assert tone[noise_only].max() < 0.3
    quiet = sound[:, :4000].abs().amax(dim=1) < 1e-3
    assert 0.05 < quiet[~noise_only].float().mean() < 0.35  # without noise
    reverberant = replace(PLAIN, noise_probability=0.0, reverb_probability=1.0, drr_db=(0.0, 0.0))
    assert render_scene(clean[:1], spotter_data.noises, reverberant)[0][0, 16_050:16_200].abs().max() > 0.02
    loud = replace(PLAIN, noise_probability=0.0, output_peak_dbfs=(3.0, 3.0))
    assert (render_scene(clean[:1], spotter_data.noises, loud)[0].abs() == 1.0).sum() > 1000  # clipped


# --- targets -------------------------------------------------------------------------------------


def test_frames_after_a_digit_have_it_as_their_target() -> None:
    classes, durations = frame_targets([Digit(7, 4000, 8000)], 128)
    since = ((np.arange(128) + 1) * HOP - 8000) / SAMPLE_RATE
    target = (since >= TARGET_WINDOW[0]) & (since < TARGET_WINDOW[1])
    assert (classes[target] == 7).all()
    assert set(classes[~target].tolist()) == {BACKGROUND, IGNORE_INDEX}
    assert (classes[since < -0.1] == BACKGROUND).all()
    first = np.flatnonzero(target)[0]
    assert np.expm1(durations[first]) == pytest.approx(((first + 1) * HOP - 4000) / HOP, rel=1e-5)
    assert (frame_targets([Digit(7, -3000, 500)], 128)[0] != 7).all()  # most of it lies before the utterance
    both, _ = frame_targets([Digit(7, 4000, 8000), Digit(3, 8000, 9200)], 128)
    assert {7, 3} <= set(both.tolist())  # the window of the first is kept while the second ends


def test_the_loss_counts_labelled_frames_alone() -> None:
    classes = torch.tensor([[7, BACKGROUND, IGNORE_INDEX, BACKGROUND]])
    right = torch.full((1, 4, BACKGROUND + 1), -10.0)
    right[0, [0, 1, 2, 3], [7, BACKGROUND, 2, 5]] = 10.0
    output, durations = SpotterOutput(right, torch.zeros(1, 4)), torch.zeros(1, 4)
    assert [counts.tolist() for counts in count_frames(output, classes)] == [[1, 1], [1, 2]]
    loss = spotter_loss(output, classes, durations)
    right[0, 2] = 0.0
    assert spotter_loss(output, classes, durations) == loss  # the ignored frame
    longer = spotter_loss(output, classes, torch.tensor([[1.0, 9.0, 9.0, 9.0]]))
    assert (longer - loss).item() == pytest.approx(0.05 * 0.5, abs=1e-4)  # of the digit's frame only
    nothing = torch.full((1, 4), BACKGROUND)
    assert torch.isfinite(spotter_loss(output, nothing, durations))
