"""Draw what each effect of augmentation does to a spoken digit: the pictures of docs/augmentation.md.

    python docs/augmentation_pictures.py                     # all of them, into docs/images
    python docs/augmentation_pictures.py --out there speed   # some of them, into there

The speech is espeak-ng's, so the pictures are the same on every machine with the extra [train].
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import soundfile
import torch
from PIL import Image
from torch import Tensor

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE
from digit_detector.labels import MEL_CNN
from ml_training.config import AugmentationConfig
from ml_training.data.augmentation import augment
from ml_training.data.augmentation.mixup import mix
from ml_training.data.tts import synthesize_digits
from ml_training.pipelines import get_pipeline
from ml_training.pipelines.mel_cnn_pipeline import MelCnnClassifier

IMAGES = Path(__file__).with_name("images")
DIGIT, OTHER = 7, 2
OFF = AugmentationConfig(
    speed=(1.0, 1.0), gain_db=(0.0, 0.0), random_eq_db=0.0, noise_probability=0.0, procedural_ratio=0.0,
    time_shift=0.0, vtlp=(1.0, 1.0), spec_augment=False,
)  # fmt: skip
INK, PALETTE = "#2b5c8a", "magma"
COLOURS = 48  # of a picture: enough for its shades, and a third of the bytes


class Effect(NamedTuple):
    """What is turned on, and which draw of it is shown."""

    title: str
    settings: dict[str, Any]
    seed: int = 0


EFFECTS = {
    "trim": Effect("trim 0.4: up to so much of either end lost", {"edge_crop_probability": 1.0, "edge_crop": 0.4}, 1),
    "speed": Effect("speed 1.25: shorter, pitch and formants higher", {"speed": (1.25, 1.25)}),
    "shift": Effect("shift 1: anywhere in its second", {"time_shift": 1.0}, 3),
    "level": Effect("level -12 dB", {"gain_db": (-12.0, -12.0)}),
    "equaliser": Effect("equaliser of up to 12 dB (6 by default)", {"random_eq_db": 12.0}, 1),
    "tilt": Effect("tilt of up to 6 dB an octave", {"tilt_db": 6.0}, 2),
    "band": Effect("band limits 400 and 2500 Hz", {
        "band_probability": 1.0, "band_low_hz": (400.0, 400.0), "band_high_hz": (2500.0, 2500.0)}),
    "coloured_noise": Effect("coloured noise at 5 dB", {"noise_probability": 1.0, "snr_db": (5.0, 5.0)}, 1),
    "generated_noise": Effect("a generated sound at 5 dB", {
        "noise_probability": 1.0, "snr_db": (5.0, 5.0), "procedural_ratio": 1.0}, 2),
    "recorded_noise": Effect("noise from a folder (here a babble of voices) at 5 dB", {
        "noise_probability": 1.0, "snr_db": (5.0, 5.0), "noise_dir": "babble"}),
    "room": Effect("room of 0.6 s, as loud as the direct sound", {
        "reverb_probability": 1.0, "rt60": (0.6, 0.6), "drr_db": (0.0, 0.0)}),
    "tract": Effect("tract 1.18: formants higher, pitch and duration kept", {
        "formant_shift_probability": 1.0, "formant_shift": (1.18, 1.18)}),
    "pitch": Effect("pitch 1.5: voice higher, formants and duration kept", {
        "pitch_probability": 1.0, "pitch": (1.5, 1.5)}),
    "telephone": Effect("telephone: 300 to 3400 Hz, 8-bit mu-law", {"telephone_probability": 1.0}),
    "eight_bit": Effect("8 even bits, peak 24 dB below full scale", {
        "quantize_probability": 1.0, "peak_dbfs": (-24.0, -24.0)}),
    "mixup": Effect("mixup: another digit laid over it", {"mixup_probability": 1.0, "mixup_alpha": 10.0}),
    "cutmix": Effect("cutmix: a stretch of another digit", {"cutmix_probability": 1.0}, 12),
    "vtlp": Effect("vtlp 1.22: mel filters of another vocal tract (log-mel, mel_cnn)", {"vtlp": (1.219, 1.22)}),
    "spec_augment": Effect("SpecAugment: bands and frames hidden (log-mel, mel_cnn)", {"spec_augment": True}, 4),
}  # fmt: skip
ON_FEATURES = ("vtlp", "spec_augment")


def words() -> tuple[Tensor, Tensor, Tensor]:
    """Two digits of two voices: waveforms (2, T), lengths (2,), labels (2,)."""
    corpus = synthesize_digits(seed=0, voices=2, takes=1)
    chosen = [int(np.flatnonzero(corpus.labels == digit)[turn]) for turn, digit in enumerate((DIGIT, OTHER))]
    columns = (corpus.waveforms, corpus.lengths, corpus.labels)
    clips, lengths, labels = (torch.from_numpy(column[chosen]) for column in columns)
    return clips / clips.abs().amax(dim=1, keepdim=True) * 0.9, lengths, labels


def babble(folder: Path) -> None:
    """Eight voices talking at once, for two seconds."""
    corpus = synthesize_digits(seed=1, voices=8, takes=1)
    voices = corpus.waveforms.reshape(8, 10, NUM_SAMPLES)
    talk = np.stack([np.roll(v[[i, (i + 3) % 10]].reshape(-1), 997 * i) for i, v in enumerate(voices)])
    soundfile.write(folder / "babble.wav", 0.05 * talk.sum(axis=0) / talk.std(), SAMPLE_RATE)


def before_and_after(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Waveform (T,) and picture (bands, frames) in dB, of the clip as it was and as it became."""
    effect, (clips, lengths, labels) = EFFECTS[name], words()
    settings = dict(effect.settings)
    with tempfile.TemporaryDirectory() as folder:
        if "noise_dir" in settings:
            babble(Path(folder))
            settings["noise_dir"] = folder
        config = dataclasses.replace(OFF, **settings)
        torch.manual_seed(effect.seed)
        varied = augment(clips, lengths, config)
    if config.mixes:
        torch.manual_seed(next(s for s in range(effect.seed, 100) if _swaps(s)))
        varied, _ = mix(varied, labels, config)
    if name in ON_FEATURES:
        torch.manual_seed(effect.seed)
        return clips[0], log_mel(clips, OFF), varied[0], log_mel(varied, config)
    return clips[0], spectrogram(clips[0]), varied[0], spectrogram(varied[0])


def _swaps(seed: int) -> bool:
    """Whether a batch of two mixes its clips with one another under a seed."""
    torch.manual_seed(seed)
    return torch.randperm(2).tolist() == [1, 0]


def spectrogram(clip: Tensor) -> Tensor:
    """(T,) -> (129, 101) dB."""
    window = torch.hann_window(256)
    power = torch.stft(clip, 256, 80, window=window, pad_mode="constant", return_complex=True).abs().square()
    return 10 * torch.log10(power + 1e-5)


def log_mel(clips: Tensor, config: AugmentationConfig) -> Tensor:
    """The first clip's features (64, 51) as mel_cnn sees them in training."""
    model = get_pipeline(MEL_CNN).build()
    assert isinstance(model, MelCnnClassifier)
    model.set_augmentation(config)
    model.train()
    return model.spec_augment(model.features(clips))[0]


def draw(name: str, path: Path) -> None:
    """One picture: above before, below after; waveform and spectrogram."""
    was, was_shown, became, became_shown = before_and_after(name)
    figure, axes = plt.subplots(2, 2, figsize=(10.4, 3.0), dpi=100, width_ratios=(1, 1.35), layout="constrained")
    low, high = float(was_shown.max()) - 65, float(was_shown.max())
    on_features = name in ON_FEATURES
    if on_features:
        low, high = -2.0, 2.0
    rows = zip(axes, ("before", "after"), (was, became), (was_shown, became_shown), strict=True)
    seconds = np.arange(NUM_SAMPLES) / SAMPLE_RATE
    for (wave, shown), when, samples, levels in rows:
        wave.plot(seconds, samples.numpy(), color=INK, linewidth=0.4)
        wave.set(xlim=(0, 1), ylim=(-1.05, 1.05), yticks=[-1, 0, 1], ylabel=when)
        top = levels.shape[0] if on_features else SAMPLE_RATE / 2000
        shown.imshow(
            levels.numpy(), origin="lower", aspect="auto", extent=(0, 1, 0, top), cmap=PALETTE, vmin=low, vmax=high,
            interpolation="nearest",
        )  # fmt: skip
        shown.set_ylabel("mel band" if on_features else "kHz")
        for axis in (wave, shown):
            axis.tick_params(labelsize=8, labelbottom=when == "after")
    figure.suptitle(EFFECTS[name].title, fontsize=11, x=0.01, ha="left")
    for axis in axes[1]:
        axis.set_xlabel("s", fontsize=8, labelpad=0)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[:, :, :3]  # type: ignore[attr-defined]
    plt.close(figure)
    Image.fromarray(pixels).quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Pictures of what augmentation does")
    parser.add_argument("effects", nargs="*", metavar="EFFECT", default=[], help="which (default: all)")
    parser.add_argument("--out", type=Path, default=IMAGES)
    args = parser.parse_args(argv)
    unknown = set(args.effects) - set(EFFECTS)
    if unknown:
        parser.error(f"unknown {', '.join(sorted(unknown))}: expected some of {', '.join(EFFECTS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.effects or EFFECTS:
        draw(name, args.out / f"augmentation_{name}.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
