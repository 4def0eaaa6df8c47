"""Recorded and procedural background noise."""

import numpy as np
import pytest

from digit_detector.errors import DataError
from ml_training.data.augmentation.noise import load_noise_bank
from ml_training.data.augmentation.procedural_noise import EACH, KINDS, SAMPLES, generated_sounds


def test_recordings_are_trimmed_and_read_once(noise_dir):
    load_noise_bank.cache_clear()
    found = load_noise_bank(str(noise_dir))
    assert found.files == ("inner/hum.flac", "tone.wav")
    assert found.seconds == pytest.approx(1.2 + 3.0, abs=0.1), "silent ends are cut off, short ones repeated"
    (noise_dir / "tone.wav").unlink()
    assert load_noise_bank(str(noise_dir)) is found
    load_noise_bank.cache_clear()
    assert load_noise_bank(str(noise_dir)).data_hash != found.data_hash


def test_a_folder_that_cannot_be_used_is_an_error(varied, clips, lengths, noise_dir):
    load_noise_bank.cache_clear()
    with pytest.raises(DataError, match=r"is not a folder"):
        varied(clips, lengths, noise_probability=1.0, noise_dir=str(noise_dir / "none"))
    (noise_dir / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no recordings of background noise"):
        load_noise_bank(str(noise_dir / "empty"))
    (noise_dir / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"broken\.wav.*fix or remove it"):
        load_noise_bank(str(noise_dir))


def of(kind):
    return np.stack([samples for name, samples in generated_sounds() if name == kind])


@pytest.mark.parametrize("kind", KINDS)
def test_procedural_sounds_have_unit_power_and_differ(kind):
    sounds = of(kind)
    assert (sounds.shape, sounds.dtype) == ((EACH, SAMPLES), np.float32)
    assert np.isfinite(sounds).all()
    np.testing.assert_allclose(np.square(sounds, dtype=np.float64).mean(axis=1), 1.0, rtol=1e-3)
    np.testing.assert_allclose(sounds.mean(axis=1), 0.0, atol=1e-3)
    assert np.abs(sounds @ sounds.T / SAMPLES - np.eye(EACH)).max() < 0.9


def test_kinds_differ_and_a_seed_decides():
    def unsteadiness(sounds):  # dB, the loudest fifth of a second above the median one
        frames = np.square(sounds).reshape(len(sounds), 15, -1).mean(axis=2) + 1e-9
        return float(np.median(10 * np.log10(frames.max(axis=1) / np.median(frames, axis=1))))

    def tonality(sounds):  # share of the energy in the strongest hundredth of the spectrum
        energy = np.sort(np.abs(np.fft.rfft(sounds, axis=1)) ** 2, axis=1)
        return float(np.median(energy[:, -energy.shape[1] // 100 :].sum(axis=1) / energy.sum(axis=1)))

    assert unsteadiness(of("tonal")) > unsteadiness(of("broadband")) + 2
    assert tonality(of("tonal")) > 1.5 * tonality(of("broadband"))
    peaks = {kind: np.median(np.abs(of(kind)).max(axis=1)) for kind in KINDS}
    assert peaks["impulsive"] > peaks["broadband"]
    again, other = (generated_sounds.__wrapped__(seed)[7][1] for seed in (0, 1))
    assert np.array_equal(generated_sounds()[7][1], again)
    assert not np.array_equal(again, other)
