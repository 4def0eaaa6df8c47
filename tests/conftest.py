"""What several tests share: a tiny corpus, files of it, a model trained on it; real recordings where there are some."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE, pad_or_trim
from digit_detector.labels import MFCC
from digit_detector.model_file import model_metadata
from ml_training.data.corpus import Corpus
from ml_training.data.feature_cache import FOLDER_VARIABLE

if TYPE_CHECKING:
    from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
VOWELS = {  # two formants in Hz, one pair a digit, far enough apart for a tiny network
    0: (300, 870), 1: (450, 1900), 2: (300, 2300), 3: (620, 1200), 4: (500, 900),
    5: (750, 1700), 6: (400, 2700), 7: (900, 2200), 8: (550, 3100), 9: (850, 1150),
}  # fmt: skip


def make_tiny_network() -> nn.Module:
    """The smallest network with a spectrogram in it: mean log spectrum -> one linear layer."""
    import torch  # here and below, so that tests of the torch-free runtime do not wait for it
    from torch import nn

    from ml_training.pipelines.base import OUTPUTS, ModelOutput

    class TinyNetwork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("window", torch.hann_window(128))
            self.linear = nn.Linear(65, OUTPUTS)

        def forward(self, waveforms: Tensor) -> ModelOutput:
            spectrum = torch.stft(waveforms, 128, 128, window=self.window, center=False, return_complex=True)
            power = torch.view_as_real(spectrum).square().sum(-1).mean(-1)  # (B, 65)
            logs = (power + 1e-4).log()
            outputs = self.linear(logs - logs.mean(dim=1, keepdim=True))
            return ModelOutput(outputs[:, :-1], outputs[:, -1])

    return TinyNetwork()


def say(digit: int, pitch: float, seconds: float, generator: np.random.Generator) -> np.ndarray:
    """A vowel-like sound, float32 (T,): harmonics of `pitch` Hz under the digit's two formants, and some noise."""
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    harmonics = np.arange(pitch, SAMPLE_RATE / 2, pitch)
    gains = sum(1 / (1 + ((harmonics - formant) / 90) ** 2) for formant in VOWELS[digit])
    sound = np.sin(2 * np.pi * np.outer(time, harmonics) + generator.uniform(0, 6, len(harmonics))) @ gains
    sound *= np.hanning(len(time)) * generator.uniform(0.05, 0.15)
    return (sound + generator.normal(0, 1e-3, len(time))).astype(np.float32)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of these tests alone, where all of their trainings find what an earlier one made."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_VARIABLE, str(folder))
        yield folder


@pytest.fixture(scope="session")
def tiny_corpus() -> Corpus:
    """200 clips: ten digits, four speakers, five takes each, from 0.3 to 0.6 s; no speech, but learnable."""
    generator = np.random.default_rng(7)
    rows = [(d, s, i) for s in range(4) for d in range(10) for i in range(5)]
    clips = [say(d, 90 + 35 * s, generator.uniform(0.3, 0.6), generator) for d, s, _ in rows]
    return Corpus(
        name="tiny",
        waveforms=np.stack([pad_or_trim(clip) for clip in clips]),
        lengths=np.array([len(clip) for clip in clips]),
        labels=np.array([d for d, _, _ in rows]),
        speakers=tuple(f"speaker{s}" for _, s, _ in rows),
        indices=np.array([i for _, _, i in rows]),
        files=tuple(f"{d}_speaker{s}_{i}.wav" for d, s, i in rows),
        data_hash="tiny",
        synthetic=True,
        official_split=False,
    )


@pytest.fixture(scope="session")
def tiny_folder(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus as WAV files {digit}_{speaker}_{index}.wav."""
    folder = tmp_path_factory.mktemp("tiny")
    for name, samples, length in zip(tiny_corpus.files, tiny_corpus.waveforms, tiny_corpus.lengths, strict=True):
        start = (NUM_SAMPLES - length) // 2
        soundfile.write(folder / name, samples[start : start + length], SAMPLE_RATE, subtype="PCM_16")
    return folder


@pytest.fixture(scope="session")
def tiny_network(tiny_corpus: Corpus) -> nn.Module:
    """A network that knows the tiny corpus, and that white noise is no digit."""
    import torch
    from torch import nn

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make_tiny_network()
        waveforms, labels = torch.from_numpy(tiny_corpus.waveforms), torch.from_numpy(tiny_corpus.labels)
        noise = torch.randn(100, NUM_SAMPLES) * torch.logspace(-2, -0.5, 100)[:, None]
        everything, is_digit = torch.cat([waveforms, noise]), torch.cat([torch.ones(len(labels)), torch.zeros(100)])
        optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
        for _ in range(60):
            optimizer.zero_grad()
            outputs = network(everything)
            loss = nn.functional.cross_entropy(outputs.digit_logits[: len(labels)], labels)
            (loss + nn.functional.binary_cross_entropy_with_logits(outputs.presence_logit, is_digit)).backward()
            optimizer.step()
        outputs = network(everything)
        assert (outputs.digit_logits[: len(labels)].argmax(1) == labels).all()
        assert torch.equal(outputs.presence_logit > 0, is_digit > 0)
    return network.eval()


@pytest.fixture(scope="session")
def tiny_models(tiny_network: nn.Module, tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models with one exported classifier in it, mfcc by name. Not to be written to."""
    from ml_training.deploy.export import export_onnx

    folder = tmp_path_factory.mktemp("trained") / "models"
    metadata = model_metadata(
        pipeline=MFCC, data="tiny", data_hash="tiny", synthetic=True, split="official", accuracy=1.0
    )
    export_onnx(tiny_network, folder / f"{MFCC}_classifier" / "model.onnx", metadata, tiny_corpus.waveforms)
    return folder


@pytest.fixture
def run_door(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a door, e.g. "inference.py", as a program with another folder as the current one."""

    def run(door: str, *args: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", str(ROOT / "ml_training" / door), *map(str, args)]
        environment = os.environ | {"PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"} | env
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300
        )

    return run


def _folder_from(variable: str) -> Path:
    if not os.environ.get(variable):
        pytest.skip(f"${variable} is not set: no real recordings here")
    return Path(os.environ[variable])


@pytest.fixture(scope="session")
def fsdd_dir() -> Path:
    """FSDD's folder; skips where $DIGIT_DATA_DIR is not set."""
    return _folder_from("DIGIT_DATA_DIR")


@pytest.fixture(scope="session")
def corpora_dir() -> Path:
    """The folder with iitg_digits/, words/, noise/ and speech/; skips where $DIGIT_CORPORA_DIR is not set."""
    return _folder_from("DIGIT_CORPORA_DIR")
