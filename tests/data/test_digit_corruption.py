"""Corrupted digits: each kind by its samples, and the digits themselves unchanged."""

import pytest
import torch

from digit_detector.audio import NUM_SAMPLES
from ml_training.data.digit_corruption import KINDS, corrupt_digits

FADE = 40  # samples of the slope at both ends


def noise_words(*lengths):
    """Clips of white noise, each of its own level and centred; their lengths; the words alone."""
    generator = torch.Generator().manual_seed(0)
    clips = torch.zeros(len(lengths), NUM_SAMPLES)
    for row, length in enumerate(lengths):
        begin = (NUM_SAMPLES - length) // 2
        clips[row, begin : begin + length] = 0.05 * (row + 1) * torch.randn(length, generator=generator)
    words = [clip[(NUM_SAMPLES - size) // 2 :][:size] for clip, size in zip(clips, lengths, strict=True)]
    return clips, torch.tensor(lengths), words


def corrupt(clips, lengths, *kinds, noise_dir=None, seed=0, label=None):
    """The sounds made of each clip, without the zeros around; nothing is written to the clips."""
    torch.manual_seed(seed)
    labels = torch.arange(len(clips)) % 10 if label is None else torch.full((len(clips),), label)
    before = clips.clone(), lengths.clone(), labels.clone()
    made, sizes = corrupt_digits(clips, lengths, labels, None if noise_dir is None else str(noise_dir), kinds)
    assert (made.shape, made.dtype, sizes.shape) == (clips.shape, clips.dtype, lengths.shape)
    sounds = []
    for row, size in zip(made.clone(), sizes.tolist(), strict=True):
        begin = (NUM_SAMPLES - size) // 2
        assert not row[:begin].any()
        assert not row[begin + size :].any()
        sounds.append(row[begin : begin + size])
    made.fill_(9.0)
    assert all(torch.equal(*pair) for pair in zip((clips, lengths, labels), before, strict=True))
    return sounds


def rms(sound):
    return float(sound.square().mean().sqrt())


def is_part(sound, of):
    """Whether a sound, its faded ends left out, is the beginning or the end of a word."""
    middle = slice(FADE, len(sound) - FADE)
    return torch.equal(sound[middle], of[: len(sound)][middle]) or torch.equal(sound[middle], of[-len(sound) :][middle])


def test_cut_off_leaves_the_beginning_or_the_end():
    clips, lengths, words = noise_words(*[4000] * 40)
    sounds = corrupt(clips, lengths, "cut off")
    assert all(is_part(sound, word) and 799 <= len(sound) <= 2000 for sound, word in zip(sounds, words, strict=True))
    begins = sum(torch.equal(s[FADE:-FADE], w[: len(s)][FADE:-FADE]) for s, w in zip(sounds, words, strict=True))
    assert 8 < begins < 32
    assert len({len(sound) for sound in sounds}) > 20


def test_doubled_is_two_digits_at_one_level():
    clips, lengths, words = noise_words(1600, 2400, 3200)
    for row, sound in enumerate(corrupt(clips, lengths, "doubled")):
        first, second = words[row], words[(row + 1) % 3]
        gap = len(sound) - len(first) - len(second)
        assert 0 <= gap <= 800
        assert torch.equal(sound[FADE : len(first)], first[FADE:])
        assert not sound[len(first) : len(first) + gap].any()
        torch.testing.assert_close(sound[len(first) + gap : -FADE], second[:-FADE] * (rms(first) / rms(second)))
    clips, lengths, words = noise_words(5600, 3200)
    for seed in range(5):  # of a second digit that is too long half at least is kept
        first, second = corrupt(clips, lengths, "doubled", seed=seed)
        assert torch.equal(first[FADE:5600], words[0][FADE:])
        assert torch.equal(second[FADE:3200], words[1][FADE:])
        assert len(first) == len(second) == NUM_SAMPLES
        assert first[-1600 + FADE : -FADE].all(), "the gap ends before"


def test_spliced_goes_from_one_digit_over_to_another():
    clips, lengths, words = noise_words(3200, 4800, 4000)
    for row, sound in enumerate(corrupt(clips, lengths, "spliced")):
        first, second = words[row], words[(row + 1) % 3]
        kept = int((sound[: len(first)][FADE:] == first[FADE : len(sound)]).sum()) + FADE
        rest = len(sound) - kept
        assert 0.35 <= kept / len(first) <= 0.65
        assert kept / len(first) + rest / len(second) == pytest.approx(1.0, abs=1e-3)
        torch.testing.assert_close(sound[kept:-FADE], second[-rest:-FADE] * (rms(first) / rms(second)))


@pytest.mark.parametrize(
    ("kind", "lengths", "label"),
    [("doubled", (6080, 8000, 5600, 8000), None), ("spliced", (4000,) * 30, 7), ("spliced", (4000,), None)],
    ids=["too long for two", "one digit", "alone"],
)
def test_what_would_be_a_digit_is_cut_off_instead(kind, lengths, label):
    clips, sizes, words = noise_words(*lengths)
    for sound, word in zip(corrupt(clips, sizes, kind, label=label), words, strict=True):
        assert len(sound) <= len(word) / 2
        assert is_part(sound, word)


def test_turned_round_is_backwards_without_the_room_around_it():
    clips, lengths, words = noise_words(1600, 8000)
    for sound, word in zip(corrupt(clips, lengths, "turned round"), words, strict=True):
        assert torch.equal(sound[FADE:-FADE], word.flip(0)[FADE:-FADE])
    clips, lengths = 0.001 * torch.randn(2, NUM_SAMPLES), torch.tensor([8000, 8000])
    clips[:, 3200:4800] += 0.3 * torch.randn(2, 1600)
    for row, sound in enumerate(corrupt(clips, lengths, "turned round")):
        assert torch.equal(sound[FADE:-FADE], clips[row, 3200:4800].flip(0)[FADE:-FADE])
    assert len(corrupt(clips, lengths, "doubled")[0]) in range(3200, 4001), "not too long for two"


def test_noise_has_the_level_of_the_digit_and_none_of_its_samples(noise_dir):
    clips, lengths, words = noise_words(*[4000] * 20)
    for folder in (None, noise_dir):
        sounds = corrupt(clips, lengths, "noise", noise_dir=folder)
        assert all(1200 <= len(s) <= 8000 and not is_part(s, w[: len(s)]) for s, w in zip(sounds, words, strict=True))
        assert 3 < sum(len(sound) == NUM_SAMPLES for sound in sounds) < 17, "some last longer than words do"
        assert 0.5 < sorted(rms(s) / rms(w) for s, w in zip(sounds, words, strict=True))[10] < 1.5
    loudest = {int(torch.fft.rfft(sound, 8000).abs().argmax()) for sound in sounds}
    assert all(min(abs(hertz - 200), abs(hertz - 1000)) < 15 for hertz in loudest), "tone and hum of that folder"


def test_ends_are_soft_and_torch_decides():
    clips, lengths, _ = noise_words(*[3200] * 10)
    first, same, other = (corrupt(clips, lengths, *KINDS, seed=seed) for seed in (1, 1, 2))
    assert all(max(abs(sound[0]), abs(sound[-1])) < sound.abs().max() / 10 for sound in first)
    assert all(torch.equal(*pair) for pair in zip(first, same, strict=True))
    assert any(len(one) != len(two) for one, two in zip(first, other, strict=True))
    clips, lengths, _ = noise_words(*[4000] * 300)
    sizes = torch.tensor([len(sound) for sound in corrupt(clips, lengths, "turned round", "cut off")])
    assert 100 < int((sizes == 4000).sum()) < 200, "kinds are equally likely"


@pytest.mark.parametrize("kind", KINDS)
def test_silence_and_clicks_stay_finite(kind):
    clips = torch.zeros(3, NUM_SAMPLES)
    clips[1, 4000] = 1.0
    clips[2, 3000:5000] = 0.1
    sounds = corrupt(clips, torch.tensor([4000, 1, 2000]), kind)
    assert all(torch.isfinite(sound).all() and 0 < len(sound) <= NUM_SAMPLES for sound in sounds)
