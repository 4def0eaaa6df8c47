"""Digits made into sounds that are none: each kind by its samples, and nothing of the digits themselves changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from digit_detector.audio import NUM_SAMPLES
from ml_training.data.digit_corruption import KINDS, corrupt_digits

FADE = 40  # samples of the slope at both ends


def words(*lengths: int) -> tuple[Tensor, Tensor]:
    """Clips of white noise, each of its own level, in the middle of their second."""
    generator = torch.Generator().manual_seed(0)
    clips = torch.zeros(len(lengths), NUM_SAMPLES)
    for row, length in enumerate(lengths):
        begin = (NUM_SAMPLES - length) // 2
        clips[row, begin : begin + length] = 0.05 * (row + 1) * torch.randn(length, generator=generator)
    return clips, torch.tensor(lengths)


def spoiled(
    clips: Tensor,
    lengths: Tensor,
    *kinds: str,
    labels: Sequence[int] = (),
    noise_dir: Path | None = None,
    seed: int = 0,
) -> list[Tensor]:
    """What is heard of each clip, without the zeros around it."""
    torch.manual_seed(seed)
    digits = torch.tensor(labels) if labels else torch.arange(len(clips)) % 10
    made, sizes = corrupt_digits(clips, lengths, digits, None if noise_dir is None else str(noise_dir), kinds)
    assert made.shape == clips.shape
    assert made.dtype == clips.dtype
    assert sizes.shape == lengths.shape
    heard = []
    for row, size in zip(made, sizes.tolist(), strict=True):
        begin = (NUM_SAMPLES - size) // 2
        assert not row[:begin].any()
        assert not row[begin + size :].any()
        assert row[begin : begin + size].any()
        heard.append(row[begin : begin + size])
    return heard


def word(clips: Tensor, lengths: Tensor, row: int) -> Tensor:
    begin = (NUM_SAMPLES - int(lengths[row])) // 2
    return clips[row, begin : begin + int(lengths[row])]


def level(sound: Tensor) -> float:
    return float(sound.square().mean().sqrt())


def is_part(sound: Tensor, of: Tensor) -> bool:
    """Whether a sound, its faded ends left out, is the beginning or the end of a word."""
    middle = slice(FADE, len(sound) - FADE)
    return torch.equal(sound[middle], of[: len(sound)][middle]) or torch.equal(sound[middle], of[-len(sound) :][middle])


def test_a_digit_cut_off_is_its_beginning_or_its_end() -> None:
    clips, lengths = words(*[4000] * 40)
    heard = spoiled(clips, lengths, "cut off")
    begins = 0
    for row, sound in enumerate(heard):
        whole = word(clips, lengths, row)
        assert 0.2 * 4000 - 1 <= len(sound) <= 0.5 * 4000
        assert is_part(sound, whole)
        begins += torch.equal(sound[FADE:-FADE], whole[: len(sound)][FADE:-FADE])
    assert 8 < begins < 32
    assert len({len(sound) for sound in heard}) > 20


def test_two_digits_run_together_at_one_level() -> None:
    clips, lengths = words(1600, 2400, 3200)
    heard = spoiled(clips, lengths, "doubled")
    for row, sound in enumerate(heard):
        first, second = word(clips, lengths, row), word(clips, lengths, (row + 1) % 3)
        gap = len(sound) - len(first) - len(second)
        assert 0 <= gap <= 800
        assert torch.equal(sound[FADE : len(first)], first[FADE:])
        assert not sound[len(first) : len(first) + gap].any()
        end = sound[len(first) + gap : -FADE]
        torch.testing.assert_close(end, second[:-FADE] * (level(first) / level(second)))


def test_digits_too_long_for_two_in_a_second_are_cut_off_instead() -> None:
    clips, lengths = words(6080, 8000, 5600, 8000)
    for row, sound in enumerate(spoiled(clips, lengths, "doubled")):
        whole = word(clips, lengths, row)
        assert len(sound) <= len(whole) / 2
        assert is_part(sound, whole)


def test_of_a_second_digit_that_is_too_long_its_half_at_least_is_heard() -> None:
    clips, lengths = words(5600, 3200)
    for seed in range(5):
        first, second = spoiled(clips, lengths, "doubled", seed=seed)
        assert torch.equal(first[FADE:5600], word(clips, lengths, 0)[FADE:])
        assert torch.equal(second[FADE:3200], word(clips, lengths, 1)[FADE:])
        assert len(first) == len(second) == NUM_SAMPLES
        assert first[-1600 + FADE : -FADE].all(), "the gap ends before"


def test_a_splice_goes_from_one_digit_over_to_another() -> None:
    clips, lengths = words(3200, 4800, 4000)
    for row, sound in enumerate(spoiled(clips, lengths, "spliced")):
        first, second = word(clips, lengths, row), word(clips, lengths, (row + 1) % 3)
        kept = int((sound[: len(first)][FADE:] == first[FADE : len(sound)]).sum()) + FADE
        rest = len(sound) - kept
        assert 0.35 <= kept / len(first) <= 0.65
        assert 0.35 <= rest / len(second) <= 0.65
        assert kept / len(first) + rest / len(second) == pytest.approx(1.0, abs=1e-3)
        expected = second[-rest:-FADE] * (level(first) / level(second))
        torch.testing.assert_close(sound[kept:-FADE], expected)


def test_a_digit_is_never_spliced_with_itself() -> None:
    clips, lengths = words(*[4000] * 30)
    for row, sound in enumerate(spoiled(clips, lengths, "spliced", labels=[7] * 30)):
        assert is_part(sound, word(clips, lengths, row)), "cut off instead"
        assert len(sound) <= 2000
    alone = spoiled(clips[:1], lengths[:1], "spliced")
    assert is_part(alone[0], word(clips, lengths, 0))


def test_a_digit_turned_round_has_the_same_samples_backwards() -> None:
    clips, lengths = words(1600, 8000)
    for row, sound in enumerate(spoiled(clips, lengths, "turned round")):
        whole = word(clips, lengths, row)
        assert len(sound) == len(whole)
        assert torch.equal(sound[FADE:-FADE], whole.flip(0)[FADE:-FADE])


def test_noise_in_a_digits_place_has_its_level_and_nothing_of_it(noise_dir: Path) -> None:
    clips, lengths = words(*[4000] * 20)
    for folder in (None, noise_dir):
        heard = spoiled(clips, lengths, "noise", noise_dir=folder)
        for row, sound in enumerate(heard):
            assert 1200 <= len(sound) <= NUM_SAMPLES
            assert not is_part(sound, word(clips, lengths, row)[: len(sound)])
        assert 3 < sum(len(sound) == NUM_SAMPLES for sound in heard) < 17, "some last longer than words do"
        assert len({len(sound) for sound in heard}) > 5
        ratios = [level(sound) / level(word(clips, lengths, row)) for row, sound in enumerate(heard)]
        assert 0.5 < sorted(ratios)[10] < 1.5
    loudest = {int(torch.fft.rfft(sound, 8000).abs().argmax()) for sound in heard}
    assert all(min(abs(hertz - 200), abs(hertz - 1000)) < 15 for hertz in loudest), "tone and hum of that folder"


def test_the_room_around_a_word_is_not_spoiled_with_it() -> None:
    """A recording may last its second while the word in it does not."""
    generator = torch.Generator().manual_seed(1)
    clips = 0.001 * torch.randn(2, NUM_SAMPLES, generator=generator)
    clips[:, 3200:4800] += 0.3 * torch.randn(2, 1600, generator=generator)
    for row, sound in enumerate(spoiled(clips, torch.tensor([8000, 8000]), "turned round")):
        assert torch.equal(sound[FADE:-FADE], clips[row, 3200:4800].flip(0)[FADE:-FADE])
    assert len(spoiled(clips, torch.tensor([8000, 8000]), "doubled")[0]) in range(3200, 4001), "not too long for two"


def test_sounds_begin_and_end_softly() -> None:
    clips, lengths = words(*[3200] * 10)
    for sound in spoiled(clips, lengths, *KINDS):
        assert sound[0].abs() < sound.abs().max() / 10
        assert sound[-1].abs() < sound.abs().max() / 10


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_made_shares_nothing_with_what_it_is_made_of(kind: str) -> None:
    clips, lengths = words(1600, 2400, 3200, 8000)
    labels = torch.arange(4)
    before = clips.clone(), lengths.clone(), labels.clone()
    made, sizes = corrupt_digits(clips, lengths, labels, None, [kind])
    made.fill_(9.0)
    sizes.fill_(9)
    assert all(torch.equal(*pair) for pair in zip((clips, lengths, labels), before, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_silence_and_clicks_stay_finite(kind: str) -> None:
    clips = torch.zeros(3, NUM_SAMPLES)
    clips[1, 4000] = 1.0
    clips[2, 3000:5000] = 0.1
    made, sizes = corrupt_digits(clips, torch.tensor([4000, 1, 2000]), torch.tensor([1, 2, 3]), None, [kind])
    assert torch.isfinite(made).all()
    assert sizes.min() > 0
    assert sizes.max() <= NUM_SAMPLES


def test_every_kind_comes_up_equally_often() -> None:
    clips, lengths = words(*[4000] * 300)
    sizes = torch.tensor([len(sound) for sound in spoiled(clips, lengths, "turned round", "cut off")])
    assert 100 < int((sizes == 4000).sum()) < 200


def test_chance_is_torchs_own() -> None:
    clips, lengths = words(1600, 2400, 3200, 4000)
    first, same, other = (torch.cat(spoiled(clips, lengths, *KINDS, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert first.shape != other.shape or not torch.equal(first, other)
