"""Features agree with librosa, and level, warping and masking do what they say."""

from __future__ import annotations

from pathlib import Path

import librosa
import numpy as np
import pytest
import torch

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE, load_audio
from ml_training.pipelines.features import (
    AMIN,
    FRAMES,
    HOP,
    WINDOW,
    Deltas,
    LogMel,
    PowerSpectrogram,
    SpecAugment,
    dct_matrix,
    mel_filters,
)

SPECTRUM = {"sr": SAMPLE_RATE, "n_fft": WINDOW, "hop_length": HOP}


def librosa_log_mel(clip: np.ndarray, bands: int) -> np.ndarray:
    power = librosa.feature.melspectrogram(y=clip, n_mels=bands, **SPECTRUM)
    return np.asarray(librosa.power_to_db(power, amin=AMIN, top_db=None))


def generated_clips(count: int) -> np.ndarray:
    """Noise bursts and sweeps between silences, (count, 8000)."""
    rng = np.random.default_rng(0)
    clips = np.zeros((count, NUM_SAMPLES), dtype=np.float32)
    for clip in clips:
        start, length = rng.integers(0, 4000), rng.integers(500, 4000)
        sweep = np.sin(np.cumsum(rng.uniform(0.05, 2.0) * np.linspace(0.2, 1, length)))
        clip[start : start + length] = rng.uniform(0.01, 1) * (sweep + rng.normal(0, 0.1, length))
    return clips


def assert_agrees_with_librosa(clips: np.ndarray) -> None:
    waveforms = torch.from_numpy(clips)
    deltas = Deltas()
    for bands in (20, 64):
        log_mel = LogMel(bands).eval()(waveforms)
        assert log_mel.shape == (len(clips), bands, FRAMES)
        cepstra = torch.matmul(dct_matrix(bands, 13), log_mel)
        first, second = deltas(cepstra)
        for i, clip in enumerate(clips):
            expected = librosa_log_mel(clip, bands)
            np.testing.assert_allclose(log_mel[i], expected, atol=1e-3)
            mfcc = librosa.feature.mfcc(S=expected, n_mfcc=13)
            np.testing.assert_allclose(cepstra[i], mfcc, atol=1e-3)
            np.testing.assert_allclose(first[i], librosa.feature.delta(mfcc), atol=1e-3)
            np.testing.assert_allclose(second[i], librosa.feature.delta(mfcc, order=2), atol=1e-3)


def test_features_agree_with_librosa_on_generated_sounds() -> None:
    assert_agrees_with_librosa(generated_clips(6))


@pytest.mark.real_data
def test_features_agree_with_librosa_on_100_recordings(fsdd_dir: Path) -> None:
    files = sorted((fsdd_dir / "recordings").glob("*.wav"))[::30]
    assert len(files) == 100
    assert_agrees_with_librosa(np.stack([load_audio(file) for file in files]))


def test_warping_moves_energy_up_and_down() -> None:
    time = torch.arange(NUM_SAMPLES) / SAMPLE_RATE
    power = PowerSpectrogram()(torch.sin(2 * torch.pi * 1000 * time)[None])

    def peak(warp: float) -> int:
        return int(torch.matmul(mel_filters(64, warp), power)[0, :, 25].argmax())

    assert peak(1.25) < peak(1.0) < peak(0.8), "filters moved up see a given tone in a lower band"


def test_warping_happens_in_training_mode_only() -> None:
    log_mel = LogMel(20)
    log_mel.warp_between(0.8, 1.25)
    waveforms = torch.from_numpy(generated_clips(1)).repeat(8, 1)
    assert log_mel.eval()(waveforms).unique(dim=0).shape[0] == 1
    torch.manual_seed(0)
    assert log_mel.train()(waveforms).unique(dim=0).shape[0] > 1
    log_mel.warp_between(1.0, 1.0)
    torch.testing.assert_close(log_mel(waveforms), log_mel.eval()(waveforms))


def test_spec_augment_hides_stripes_and_nothing_else() -> None:
    torch.manual_seed(0)
    mask = SpecAugment(bands=8, frames=8).train()
    spectrograms = torch.rand(16, 64, 51) + 1.0
    assert mask(spectrograms) is spectrograms, "off until it is enabled"
    mask.enabled = True
    masked = mask(spectrograms)
    changed = masked != spectrograms
    assert 0.05 < changed.float().mean() < 0.4
    for clip, before, hidden in zip(masked, spectrograms, changed, strict=True):
        assert (clip[hidden] == before.min()).all()
        stripes = hidden | (before == before.min())  # hiding the smallest value changes nothing
        whole = stripes.all(dim=1)[:, None] | stripes.all(dim=0)[None, :]
        assert (whole == stripes).sum() >= stripes.numel() - 1, "every hidden cell lies in a whole row or column"
    assert mask.eval()(spectrograms) is spectrograms
