"""Augmentation: seeded, bounded, finite, and doing what its settings say."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from ml_training.audio import NUM_SAMPLES, SAMPLE_RATE
from ml_training.config import AugmentationConfig
from ml_training.data.augmentation import augment, place, random_noise, random_response
from ml_training.data.backgrounds import load_backgrounds
from ml_training.errors import DataError

PADDED = 9000
OFF = AugmentationConfig(
    speed=(1.0, 1.0), level_db=(0.0, 0.0), equaliser_db=0.0, noise_probability=0.0, generated_share=0.0,
    shift=0.0,
)  # fmt: skip
EFFECTS: dict[str, dict[str, Any]] = {
    "speed": {"speed": (0.8, 1.25)},
    "level": {"level_db": (-20.0, -1.0)},
    "equaliser": {"equaliser_db": 6.0},
    "noise": {"noise_probability": 1.0},
    "shift": {"shift": 1.0},
    "tract": {"tract_probability": 0.9},
    "pitch": {"pitch_probability": 0.9},
    "tilt": {"tilt_db": 6.0},
    "band": {"band_probability": 0.9},
    "reverberation": {"reverb_probability": 0.9},
    "telephone": {"telephone_probability": 0.9},
    "eight bits": {"eight_bit_probability": 0.9},
}


def changed(**settings: Any) -> AugmentationConfig:
    """Everything off but `settings`."""
    return AugmentationConfig(**{**vars(OFF), **settings})


def varied(clips: torch.Tensor, lengths: torch.Tensor, seed: int = 0, **settings: Any) -> torch.Tensor:
    torch.manual_seed(seed)
    return augment(clips, lengths, changed(**settings))


@pytest.fixture
def lengths() -> torch.Tensor:
    return torch.tensor([1200, 4000, 6002, 8000])


@pytest.fixture
def clips(lengths: torch.Tensor) -> torch.Tensor:
    """Tones of 500 Hz in the middle of their second."""
    time = torch.arange(NUM_SAMPLES) / SAMPLE_RATE
    tone = torch.sin(2 * torch.pi * 500 * time)
    begin = (NUM_SAMPLES - lengths) // 2
    index = torch.arange(NUM_SAMPLES)
    inside = (index >= begin[:, None]) & (index < (begin + lengths)[:, None])
    return tone * inside


def vowel(pitch: float, formant: float, length: int = 4800) -> torch.Tensor:
    """(T,) harmonics of `pitch` Hz under one formant, `length` samples in the middle of the second."""
    time = torch.arange(length) / SAMPLE_RATE
    harmonics = torch.arange(pitch, SAMPLE_RATE / 2, pitch)
    gains = 1 / (1 + ((harmonics - formant) / 150) ** 2)
    sound = torch.sin(2 * torch.pi * harmonics[:, None] * time + harmonics[:, None]).mul(gains[:, None]).sum(dim=0)
    sound = 0.05 * sound * torch.hann_window(length)
    start = (NUM_SAMPLES - length) // 2
    return torch.nn.functional.pad(sound, (start, NUM_SAMPLES - length - start))


def pitch_of(clip: torch.Tensor) -> float:
    """Hz, where the autocorrelation of the middle has its peak, from 70 to 400 Hz."""
    middle = clip[3000:5048] * torch.hann_window(2048)
    correlation = torch.fft.irfft(torch.fft.rfft(middle, n=4096).abs().square())
    low, high = SAMPLE_RATE // 400, SAMPLE_RATE // 70
    lag = low + int(correlation[low:high].argmax())
    before, here, after = correlation[lag - 1 : lag + 2].tolist()
    return SAMPLE_RATE / (lag + 0.5 * (before - after) / (before - 2 * here + after))


def formant_of(clip: torch.Tensor) -> float:
    """Hz, centre of the power of the middle, the weak ends of its spectrum left out."""
    power = torch.fft.rfft(clip[3000:5048] * torch.hann_window(2048)).abs().square()
    power = torch.where(power > 0.03 * power.max(), power, 0.0)
    return float((power * torch.linspace(0, SAMPLE_RATE / 2, 1025)).sum() / power.sum())


# --- all effects ---------------------------------------------------------------------------------


def test_the_default_is_seeded(clips: torch.Tensor, lengths: torch.Tensor) -> None:
    def by_default(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return augment(clips, lengths, AugmentationConfig())

    assert torch.equal(by_default(1), by_default(1))
    assert not torch.equal(by_default(1), by_default(2))


@pytest.mark.parametrize("name", EFFECTS)
def test_one_seed_gives_one_batch(name: str, clips: torch.Tensor, lengths: torch.Tensor) -> None:
    once, again = (varied(clips, lengths, 1, **EFFECTS[name]) for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, varied(clips, lengths, 2, **EFFECTS[name]))
    assert once.shape == clips.shape
    assert once.dtype == clips.dtype
    assert (once - clips).abs().max() > 1e-3, "it does something"


@pytest.mark.parametrize("name", EFFECTS)
def test_silence_stays_finite_and_silent(name: str, lengths: torch.Tensor) -> None:
    silence = torch.zeros(len(lengths), NUM_SAMPLES)
    assert varied(silence, lengths, **EFFECTS[name]).abs().max() < 1e-6


def test_everything_at_once_in_batches_of_any_size(clips: torch.Tensor, lengths: torch.Tensor) -> None:
    settings = {name: value for effect in EFFECTS.values() for name, value in effect.items()}
    for clips_in_batch in (1, 7, 33):
        rows = torch.arange(clips_in_batch) % len(clips)
        found = varied(clips[rows], lengths[rows], **settings)
        assert found.shape == (clips_in_batch, NUM_SAMPLES)
        assert torch.isfinite(found).all()
        assert (found.square().mean(dim=1) > 0).all()


def test_nothing_chosen_changes_nothing(clips: torch.Tensor, lengths: torch.Tensor) -> None:
    torch.testing.assert_close(varied(clips, lengths), clips, atol=1e-5, rtol=0)


def test_the_clips_given_are_not_written_to(clips: torch.Tensor, lengths: torch.Tensor) -> None:
    before = clips.clone()
    varied(clips, lengths, **{name: value for effect in EFFECTS.values() for name, value in effect.items()})
    assert torch.equal(clips, before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_everything_works_on_a_gpu(clips: torch.Tensor, lengths: torch.Tensor, noise_dir: Path) -> None:
    settings = {name: value for effect in EFFECTS.values() for name, value in effect.items()}
    settings |= {"noise_dir": str(noise_dir), "recorded_share": 0.5}
    once, again = (varied(clips.cuda(), lengths.cuda(), **settings) for _ in range(2))
    assert once.is_cuda
    assert torch.isfinite(once).all()
    torch.testing.assert_close(once, again)


@pytest.mark.parametrize("name", ["tract", "pitch", "band", "reverberation", "telephone", "eight bits", "noise"])
def test_as_often_as_wanted(name: str) -> None:
    many = vowel(125.0, 1000.0).repeat(200, 1)
    ((setting, _),) = EFFECTS[name].items()
    found = varied(many, torch.full((200,), 4800), **{setting: 0.3})
    touched = (found - many).abs().amax(dim=1) > 1e-4
    assert 0.2 < touched.float().mean() < 0.4


@pytest.mark.bench
def test_it_takes_at_most_half_of_a_training_step() -> None:
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "augmentation_cost.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


# --- place, speed, level -------------------------------------------------------------------------


def test_clips_stay_whole_inside_their_second(clips: torch.Tensor, lengths: torch.Tensor) -> None:
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
def test_speed_changes_pitch_and_duration(clips: torch.Tensor, lengths: torch.Tensor, factor: float) -> None:
    placed, durations = place(clips[:2], lengths[:2], (factor, factor), 0.0)
    torch.testing.assert_close(durations, lengths[:2] / factor)
    peak = torch.fft.rfft(placed).abs().argmax(dim=1)
    assert ((peak - 500 * factor).abs() <= 2).all()
    there = placed[1].abs() > 0.05
    assert abs(int(there.nonzero()[-1] - there.nonzero()[0]) - 4000 / factor) < 20


def test_high_tones_survive_resampling() -> None:
    tone = torch.sin(2 * torch.pi * 3000 * torch.arange(NUM_SAMPLES) / SAMPLE_RATE)[None]
    placed, _ = place(tone, torch.tensor([NUM_SAMPLES]), (0.97, 0.97), 0.0)
    kept = placed[0, 500:-500].square().mean() / tone.square().mean()
    assert kept > 0.6, "a straight line between samples would keep half of it"


def test_level_is_set_last(clips: torch.Tensor, lengths: torch.Tensor) -> None:
    assert varied(clips, lengths, level_db=(-40.0, -40.0), equaliser_db=6.0).abs().max() < 0.03


# --- voice ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_the_tract_moves_formants_and_nothing_else(factor: float) -> None:
    clip = vowel(125.0, 1000.0)[None]
    moved = varied(clip, torch.tensor([4800]), tract_probability=1.0, tract=(factor, factor))
    assert formant_of(moved[0]) / formant_of(clip[0]) == pytest.approx(factor, rel=0.07)
    assert pitch_of(moved[0]) == pytest.approx(125, rel=0.01)
    envelopes = [c.square().unfold(0, 400, 400).mean(dim=1).sqrt() for c in (clip[0], moved[0])]
    assert np.corrcoef(*envelopes)[0, 1] > 0.98, "it lasts as long"


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_pitch_moves_alone(factor: float) -> None:
    clip = vowel(125.0, 1000.0)[None]
    moved = varied(clip, torch.tensor([4800]), pitch_probability=1.0, pitch=(factor, factor))
    assert pitch_of(moved[0]) == pytest.approx(125 * factor, rel=0.02)
    assert formant_of(moved[0]) / formant_of(clip[0]) == pytest.approx(1.0, rel=0.07)
    envelopes = [c.square().unfold(0, 400, 400).mean(dim=1).sqrt() for c in (clip[0], moved[0])]
    assert np.corrcoef(*envelopes)[0, 1] > 0.97, "it lasts as long"
    level = moved.square().sum() / clip.square().sum()
    assert level == pytest.approx(1.0, abs=0.05)


def test_a_voice_that_is_not_chosen_stays_as_it_is() -> None:
    clips = torch.stack([vowel(125.0, 1000.0)] * 40)
    moved = varied(clips, torch.full((40,), 4800), pitch_probability=0.5, tract_probability=0.2)
    same = (moved - clips).abs().amax(dim=1) < 1e-5
    assert 5 < int(same.sum()) < 30


# --- spectrum ------------------------------------------------------------------------------------


def test_the_equaliser_stays_within_its_limit(clips: torch.Tensor) -> None:
    torch.manual_seed(0)
    response = 20 * torch.log10(random_response(clips.repeat(50, 1), 4501, 6.0))
    assert response.abs().max() <= 6.001
    assert response.abs().max() > 5.0
    assert (response.diff(dim=1).abs() < 0.05).all(), "smooth"


def test_tilt_is_a_straight_line_over_octaves(clips: torch.Tensor) -> None:
    torch.manual_seed(0)
    response = 20 * torch.log10(random_response(clips.repeat(50, 1), 4001, 0.0, tilt_db=6.0))  # a bin for each Hz
    torch.testing.assert_close(response[:, 1000], torch.zeros(200), atol=1e-3, rtol=0)
    torch.testing.assert_close(response[:, 4000], 2 * response[:, 2000], atol=1e-3, rtol=0)
    torch.testing.assert_close(response[:, 250], -2 * response[:, 2000], atol=1e-3, rtol=0)
    assert 5.0 < response[:, 2000].abs().max() <= 6.001


def test_band_limits_are_3_db_down_where_they_say(lengths: torch.Tensor) -> None:
    noise = torch.randn(4, NUM_SAMPLES, generator=torch.Generator().manual_seed(0))
    limits = {"band_low_hz": (300.0, 300.0), "band_high_hz": (2000.0, 2000.0)}
    limited = varied(noise, torch.full((4,), NUM_SAMPLES), band_probability=1.0, **limits)
    before, after = (torch.fft.rfft(c).abs().square() for c in (noise, limited))
    gain = [10 * math.log10(after[:, hz - 10 : hz + 10].sum() / before[:, hz - 10 : hz + 10].sum()) for hz in
            (150, 300, 800, 2000, 3500)]  # fmt: skip
    assert gain[1] == pytest.approx(-3.0, abs=0.5)
    assert gain[3] == pytest.approx(-3.0, abs=0.5)
    assert abs(gain[2]) < 0.3
    assert gain[0] < -20
    assert gain[4] < -15


# --- rooms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rt60", "direct_db"), [(0.3, 0.0), (0.5, 10.0)])
def test_a_room_decays_and_is_as_loud_as_wanted(rt60: float, direct_db: float) -> None:
    click = torch.zeros(32, NUM_SAMPLES)
    click[:, 4000] = 1.0
    heard = varied(
        click, torch.full((32,), NUM_SAMPLES), reverb_probability=1.0, rt60=(rt60, rt60),
        direct_db=(direct_db, direct_db),
    )  # fmt: skip
    torch.testing.assert_close(heard[:, 4000], torch.ones(32), atol=1e-3, rtol=0)
    assert heard[:, :4000].abs().max() < 1e-3, "nothing sounds before the click, nor wraps around"
    tail = heard[:, 4001:].square().mean(dim=0)
    assert 10 * math.log10(1.0 / float(tail.sum())) == pytest.approx(direct_db, abs=0.5)
    left = 10 * torch.log10(tail.flip(0).cumsum(0).flip(0))  # Schroeder's backward integration
    slope = float(left[80] - left[1200]) / (1120 / SAMPLE_RATE)  # dB a second
    assert 60 / slope == pytest.approx(rt60, rel=0.1)


# --- noise ---------------------------------------------------------------------------------------


@pytest.fixture
def noise_dir(tmp_path: Path) -> Path:
    """Two recordings, a tone of 3 s with silent ends and a hum of 0.3 s, one in a folder below."""
    folder = tmp_path / "noises"
    (folder / "inner").mkdir(parents=True)
    time = np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE
    tone = 0.02 * np.sin(2 * np.pi * 1000 * time) * (0.5 + time / 6)
    soundfile.write(folder / "tone.wav", np.pad(tone, (SAMPLE_RATE, 2 * SAMPLE_RATE)), SAMPLE_RATE)
    soundfile.write(folder / "inner" / "hum.flac", 0.5 * np.sin(2 * np.pi * 200 * time[:2400]), SAMPLE_RATE)
    (folder / "about.txt").write_text("not audio")
    (folder / "._tone.wav").write_bytes(b"hidden")
    return folder


def noise_of(clips: torch.Tensor, lengths: torch.Tensor, **settings: Any) -> torch.Tensor:
    torch.manual_seed(0)
    spectra = torch.fft.rfft(clips, n=PADDED)
    return torch.fft.irfft(random_noise(spectra, lengths.float(), changed(**settings)), n=PADDED)[:, :NUM_SAMPLES]


@pytest.mark.parametrize("source", ["coloured", "generated", "recorded"])
@pytest.mark.parametrize("decibels", [-5.0, 0.0, 20.0])
def test_noise_has_the_ratio_to_the_word(
    clips: torch.Tensor, lengths: torch.Tensor, decibels: float, source: str, noise_dir: Path
) -> None:
    many, long = clips.repeat(16, 1), lengths.repeat(16)
    noise = noise_of(
        many, long, noise_probability=1.0, snr_db=(decibels, decibels),
        noise_dir=str(noise_dir) if source == "recorded" else None, generated_share=float(source == "generated"),
    )  # fmt: skip
    word = many.square().sum(dim=1) / long
    ratio = 10 * torch.log10(word / noise.square().mean(dim=1))
    assert abs(float(ratio.mean()) - decibels) < 0.2
    assert float(ratio.std()) < 1.0 or source == "generated", "pauses of a sound that comes and goes stay quiet"


def test_a_word_slowed_beyond_its_second_has_the_ratio_of_what_is_left_of_it() -> None:
    torch.manual_seed(0)
    word = torch.randn(64, NUM_SAMPLES)
    placed, durations = place(word, torch.full((64,), NUM_SAMPLES), (0.8, 0.8), 1.0)
    noise = noise_of(placed, durations, noise_probability=1.0, snr_db=(0.0, 0.0), generated_share=0.0)
    ratio = 10 * torch.log10(placed.square().mean(dim=1) / noise.square().mean(dim=1))
    assert abs(float(ratio.mean())) < 0.2


def test_generated_sounds_take_their_share_of_the_noise(clips: torch.Tensor, lengths: torch.Tensor) -> None:
    many, long = clips.repeat(25, 1), lengths.repeat(25)

    def unsteadiness(share: float) -> torch.Tensor:
        noise = noise_of(many, long, noise_probability=1.0, snr_db=(0.0, 0.0), generated_share=share)
        frames = noise.reshape(len(noise), 10, -1).square().mean(dim=2)
        return frames.amax(dim=1) / frames.median(dim=1).values

    # Brown noise wanders, too: what coloured noise does not reach tells the two apart.
    steady = unsteadiness(0.0).quantile(0.95)
    assert float((unsteadiness(1.0) > steady).float().mean()) > 0.3
    few, all_of_them = (float((unsteadiness(share) > 2 * steady).float().mean()) for share in (0.3, 1.0))
    assert 0.1 * all_of_them < few < 0.6 * all_of_them


def test_coloured_noise_differs_from_clip_to_clip(clips: torch.Tensor, lengths: torch.Tensor) -> None:
    noise = noise_of(clips.repeat(16, 1), lengths.repeat(16), noise_probability=1.0, snr_db=(0.0, 0.0))
    noise = noise / noise.norm(dim=1, keepdim=True)
    alike = (noise @ noise.T - torch.eye(64)).abs()
    assert alike.max() < 0.4  # brown noise has few independent samples
    centre = (torch.fft.rfft(noise).abs().square() * torch.arange(4001)).sum(dim=1) / PADDED
    assert centre.max() > 3 * centre.min(), "of several colours"


def test_recorded_noise_is_what_the_folder_holds(clips: torch.Tensor, lengths: torch.Tensor, noise_dir: Path) -> None:
    settings = {"noise_probability": 1.0, "snr_db": (0.0, 0.0), "noise_dir": str(noise_dir)}
    noise = noise_of(clips.repeat(20, 1), lengths.repeat(20), **settings)
    peaks = torch.fft.rfft(noise).abs().argmax(dim=1)
    assert set(peaks.tolist()) <= {199, 200, 201, 999, 1000, 1001}
    assert 20 < int((peaks < 500).sum()) < 60, "recordings take turns, however long they are"
    half = noise_of(clips.repeat(20, 1), lengths.repeat(20), recorded_share=0.5, **settings)
    spectra = torch.fft.rfft(half).abs().square()
    tonal = spectra.amax(dim=1) > 0.3 * spectra.sum(dim=1)
    assert 25 < int(tonal.sum()) < 55, "the others get coloured noise"
    generated = noise_of(clips.repeat(20, 1), lengths.repeat(20), generated_share=1.0, **settings)
    assert torch.equal(generated, noise), "a folder takes the place of generated sounds"


def test_backgrounds_are_trimmed_and_read_once(noise_dir: Path) -> None:
    load_backgrounds.cache_clear()
    found = load_backgrounds(str(noise_dir))
    assert found.files == ("inner/hum.flac", "tone.wav")
    assert found.seconds == pytest.approx(1.2 + 3.0, abs=0.1), "silent ends are cut off, short ones repeated"
    (noise_dir / "tone.wav").unlink()
    assert load_backgrounds(str(noise_dir)) is found
    load_backgrounds.cache_clear()
    assert load_backgrounds(str(noise_dir)).data_hash != found.data_hash


def test_no_noise_is_no_silent_fallback(clips: torch.Tensor, lengths: torch.Tensor, noise_dir: Path) -> None:
    load_backgrounds.cache_clear()
    with pytest.raises(DataError, match=r"is not a folder"):
        varied(clips, lengths, noise_probability=1.0, noise_dir=str(noise_dir / "none"))
    (noise_dir / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no audio"):
        load_backgrounds(str(noise_dir / "empty"))
    (noise_dir / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"broken\.wav.*mend or remove it"):
        load_backgrounds(str(noise_dir))


# --- few bits ------------------------------------------------------------------------------------


def test_a_telephone_has_its_band_and_255_levels() -> None:
    time = torch.arange(NUM_SAMPLES) / SAMPLE_RATE
    tones = torch.stack([0.05 * torch.sin(2 * torch.pi * hz * time) for hz in (100, 1003.7, 3800)])
    heard = varied(tones, torch.full((3,), NUM_SAMPLES), telephone_probability=1.0, peak_db=(0.0, 0.0))
    power = heard.square().mean(dim=1) / tones.square().mean(dim=1)
    assert power[0] < 1e-4
    assert power[1] == pytest.approx(1.0, abs=0.02)
    assert power[2] < 0.1
    assert 50 < len(heard[1].unique()) <= 255
    error = (heard[1] - tones[1]).square().mean() / tones[1].square().mean()
    assert -45 < 10 * math.log10(error) < -33, "mu-law: about 38 dB, however loud"


@pytest.mark.parametrize(("peak_db", "noise_db"), [(0.0, -48.0), (-24.0, -24.0)])
def test_eight_bits_are_the_coarser_the_lower_the_peak(peak_db: float, noise_db: float) -> None:
    tone = 0.003 * torch.sin(2 * torch.pi * 440.3 * torch.arange(NUM_SAMPLES) / SAMPLE_RATE)[None]
    heard = varied(tone, torch.tensor([NUM_SAMPLES]), eight_bit_probability=1.0, peak_db=(peak_db, peak_db))
    assert len(heard.unique()) <= 255 * 10 ** (peak_db / 20) + 2
    error = (heard - tone).square().mean() / tone.square().mean()
    assert 10 * math.log10(error) == pytest.approx(noise_db, abs=4)
