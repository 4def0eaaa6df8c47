"""Folders of recorded backgrounds: what is taken from them, and which are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from digit_detector.errors import DataError
from ml_training.data.augmentation.noise import load_noise_bank

MakeClips = Callable[..., torch.Tensor]


def test_backgrounds_are_trimmed_and_read_once(noise_dir: Path) -> None:
    load_noise_bank.cache_clear()
    found = load_noise_bank(str(noise_dir))
    assert found.files == ("inner/hum.flac", "tone.wav")
    assert found.seconds == pytest.approx(1.2 + 3.0, abs=0.1), "silent ends are cut off, short ones repeated"
    (noise_dir / "tone.wav").unlink()
    assert load_noise_bank(str(noise_dir)) is found
    load_noise_bank.cache_clear()
    assert load_noise_bank(str(noise_dir)).data_hash != found.data_hash


def test_no_noise_is_no_silent_fallback(
    varied: MakeClips, clips: torch.Tensor, lengths: torch.Tensor, noise_dir: Path
) -> None:
    load_noise_bank.cache_clear()
    with pytest.raises(DataError, match=r"is not a folder"):
        varied(clips, lengths, noise_probability=1.0, noise_dir=str(noise_dir / "none"))
    (noise_dir / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no audio"):
        load_noise_bank(str(noise_dir / "empty"))
    (noise_dir / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"broken\.wav.*fix or remove it"):
        load_noise_bank(str(noise_dir))
