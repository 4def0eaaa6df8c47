"""Augmentation: seeded, bounded, finite; place, speed and level, the spectrum, and noise as its settings say."""

from typing import Any

import pytest
import torch

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE
from ml_training.config import AugmentationConfig
from ml_training.data.augmentation import augment, crop_edges, place, random_noise, random_response

PADDED = 9000
EFFECTS: dict[str, dict[str, Any]] = {
    "trim": {"edge_crop_probability": 0.9},
    "speed": {"speed": (0.8, 1.25)},
    "level": {"gain_db": (-20.0, -1.0)},
    "equaliser": {"random_eq_db": 6.0},
    "noise": {"noise_probability": 1.0},
    "time_shift": {"time_shift": 1.0},
    "tract": {"formant_shift_probability": 0.9},
    "pitch": {"pitch_probability": 0.9},
    "tilt": {"tilt_db": 6.0},
    "band": {"band_probability": 0.9},
    "reverberation": {"reverb_probability": 0.9},
    "telephone": {"telephone_probability": 0.9},
    "eight bits": {"quantize_probability": 0.9},
}


# --- all effects ---------------------------------------------------------------------------------


def test_the_default_is_seeded(clips, lengths):
    def by_default(seed):
        torch.manual_seed(seed)
        return augment(clips, lengths, AugmentationConfig())

    assert torch.equal(by_default(1), by_default(1))
    assert not torch.equal(by_default(1), by_default(2))


@pytest.mark.parametrize("name", EFFECTS)
def test_one_seed_gives_one_batch(varied, name, clips, lengths):
    once, again = (varied(clips, lengths, 1, **EFFECTS[name]) for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, varied(clips, lengths, 2, **EFFECTS[name]))
    assert once.shape == clips.shape
    assert once.dtype == clips.dtype
    assert (once - clips).abs().max() > 1e-3, "it does something"


@pytest.mark.parametrize("name", EFFECTS)
def test_silence_stays_finite_and_silent(varied, name, lengths):
    silence = torch.zeros(len(lengths), NUM_SAMPLES)
    assert varied(silence, lengths, **EFFECTS[name]).abs().max() < 1e-6


def test_everything_at_once_in_batches_of_any_size(varied, clips, lengths):
    settings = {name: value for effect in EFFECTS.values() for name, value in effect.items()}
    for clips_in_batch in (1, 7, 33):
        rows = torch.arange(clips_in_batch) % len(clips)
        found = varied(clips[rows], lengths[rows], **settings)
        assert found.shape == (clips_in_batch, NUM_SAMPLES)
        assert torch.isfinite(found).all()
        assert (found.square().mean(dim=1) > 0).all()


def test_nothing_chosen_changes_nothing(varied, clips, lengths):
    torch.testing.assert_close(varied(clips, lengths), clips, atol=1e-5, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_everything_works_on_a_gpu(varied, clips, lengths, noise_dir):
    settings = {name: value for effect in EFFECTS.values() for name, value in effect.items()}
    settings |= {"noise_dir": str(noise_dir), "recorded_ratio": 0.5}
    once, again = (varied(clips.cuda(), lengths.cuda(), **settings) for _ in range(2))
    assert once.is_cuda
    assert torch.isfinite(once).all()
    torch.testing.assert_close(once, again)


@pytest.mark.parametrize("name", ["tract", "pitch", "band", "reverberation", "telephone", "eight bits", "noise"])
def test_as_often_as_wanted(varied, vowel, name):
    many = vowel(125.0, 1000.0).repeat(200, 1)
    ((setting, _),) = EFFECTS[name].items()
    found = varied(many, torch.full((200,), 4800), **{setting: 0.3})
    touched = (found - many).abs().amax(dim=1) > 1e-4
    assert 0.2 < touched.float().mean() < 0.4


# --- lost ends, place, speed, level --------------------------------------------------------------


def test_either_end_of_a_word_may_be_lost():
    words = torch.zeros(200, NUM_SAMPLES)
    words[:, 2000:6000] = 1.0
    torch.manual_seed(0)
    cropped = crop_edges(words, torch.full((200,), 4000), 0.5, 0.2)
    first, last = cropped[:, 2000:4000].lt(0.5).sum(dim=1), cropped[:, 4000:6000].lt(0.5).sum(dim=1)
    for lost in (first, last):
        assert 0.35 < (lost > 40).float().mean() < 0.65, "the other end fades over 5 ms at most"
        assert 600 < lost.max() <= 0.2 * 4000 + SAMPLE_RATE / 200
    assert 0.1 < ((first > 40) & (last > 40)).float().mean() < 0.4, "each end by itself"
    untouched = (first == 0) & (last == 0)
    torch.testing.assert_close(cropped[untouched], words[untouched], atol=1.0, rtol=0)
    assert cropped[:, 4000].eq(1).all(), "nothing of the middle"
    jumps = cropped.diff(dim=1).abs().amax(dim=1)
    assert (jumps[(first > 0) & (last > 0)] < 0.1).all(), "no click"


def test_clips_stay_whole_inside_their_second(clips, lengths):
    energy = clips.square().sum(dim=1)
    starts = set()
    for seed in range(20):
        torch.manual_seed(seed)
        placed, durations = place(clips, lengths, (1.0, 1.0), 1.0)
        assert durations.tolist() == lengths.tolist()
        torch.testing.assert_close(placed.square().sum(dim=1), energy, rtol=0.02, atol=0)
        starts.add(int((placed[0].abs() > 1e-3).nonzero()[0]))
    assert min(starts) < 1500
    assert max(starts) > 5000


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_speed_changes_pitch_and_duration(clips, lengths, factor):
    placed, durations = place(clips[:2], lengths[:2], (factor, factor), 0.0)
    torch.testing.assert_close(durations, lengths[:2] / factor)
    peak = torch.fft.rfft(placed).abs().argmax(dim=1)
    assert ((peak - 500 * factor).abs() <= 2).all()
    there = placed[1].abs() > 0.05
    assert abs(int(there.nonzero()[-1] - there.nonzero()[0]) - 4000 / factor) < 20


def test_level_is_set_last(varied, clips, lengths):
    assert varied(clips, lengths, gain_db=(-40.0, -40.0), random_eq_db=6.0).abs().max() < 0.03


# --- spectrum ------------------------------------------------------------------------------------


def test_the_equaliser_stays_within_its_limit(clips):
    torch.manual_seed(0)
    response = 20 * torch.log10(random_response(clips.repeat(50, 1), 4501, 6.0))
    assert response.abs().max() <= 6.001
    assert response.abs().max() > 5.0
    assert (response.diff(dim=1).abs() < 0.05).all(), "smooth"


def test_tilt_is_a_straight_line_over_octaves(clips):
    torch.manual_seed(0)
    response = 20 * torch.log10(random_response(clips.repeat(50, 1), 4001, 0.0, tilt_db=6.0))  # a bin for each Hz
    torch.testing.assert_close(response[:, 1000], torch.zeros(200), atol=1e-3, rtol=0)
    torch.testing.assert_close(response[:, 4000], 2 * response[:, 2000], atol=1e-3, rtol=0)
    torch.testing.assert_close(response[:, 250], -2 * response[:, 2000], atol=1e-3, rtol=0)
    assert 5.0 < response[:, 2000].abs().max() <= 6.001


# --- noise ---------------------------------------------------------------------------------------


@pytest.fixture
def noise_of(changed):
    """Makes the noise alone that clips get: noise_of(clips, lengths, **settings)."""

    def noise(clips, lengths, **settings):
        torch.manual_seed(0)
        spectra = torch.fft.rfft(clips, n=PADDED)
        return torch.fft.irfft(random_noise(spectra, lengths.float(), changed(**settings)), n=PADDED)[:, :NUM_SAMPLES]

    return noise


@pytest.mark.parametrize("source", ["coloured", "generated", "recorded"])
@pytest.mark.parametrize("decibels", [-5.0, 0.0, 20.0])
def test_noise_has_the_ratio_to_the_word(noise_of, clips, lengths, decibels, source, noise_dir):
    many, long = clips.repeat(16, 1), lengths.repeat(16)
    noise = noise_of(
        many, long, noise_probability=1.0, snr_db=(decibels, decibels),
        noise_dir=str(noise_dir) if source == "recorded" else None, procedural_ratio=float(source == "generated"),
    )  # fmt: skip
    word = many.square().sum(dim=1) / long
    ratio = 10 * torch.log10(word / noise.square().mean(dim=1))
    assert abs(float(ratio.mean()) - decibels) < 0.2
    assert float(ratio.std()) < 1.0 or source == "generated", "pauses of a sound that comes and goes stay quiet"


def test_generated_sounds_take_their_share_of_the_noise(noise_of, clips, lengths):
    many, long = clips.repeat(25, 1), lengths.repeat(25)

    def unsteadiness(share):
        noise = noise_of(many, long, noise_probability=1.0, snr_db=(0.0, 0.0), procedural_ratio=share)
        frames = noise.reshape(len(noise), 10, -1).square().mean(dim=2)
        return frames.amax(dim=1) / frames.median(dim=1).values

    # Brown noise wanders, too: only what coloured noise does not reach is counted.
    steady = unsteadiness(0.0).quantile(0.95)
    assert float((unsteadiness(1.0) > steady).float().mean()) > 0.3
    few, all_of_them = (float((unsteadiness(share) > 2 * steady).float().mean()) for share in (0.3, 1.0))
    assert 0.1 * all_of_them < few < 0.6 * all_of_them


def test_recorded_noise_is_what_the_folder_holds(noise_of, clips, lengths, noise_dir):
    settings = {"noise_probability": 1.0, "snr_db": (0.0, 0.0), "noise_dir": str(noise_dir)}
    noise = noise_of(clips.repeat(20, 1), lengths.repeat(20), **settings)
    peaks = torch.fft.rfft(noise).abs().argmax(dim=1)
    assert set(peaks.tolist()) <= {199, 200, 201, 999, 1000, 1001}
    assert 20 < int((peaks < 500).sum()) < 60, "recordings take turns, however long they are"
    half = noise_of(clips.repeat(20, 1), lengths.repeat(20), recorded_ratio=0.5, **settings)
    spectra = torch.fft.rfft(half).abs().square()
    tonal = spectra.amax(dim=1) > 0.3 * spectra.sum(dim=1)
    assert 25 < int(tonal.sum()) < 55, "the others get coloured noise"
    generated = noise_of(clips.repeat(20, 1), lengths.repeat(20), procedural_ratio=1.0, **settings)
    assert torch.equal(generated, noise), "a folder takes the place of generated sounds"
