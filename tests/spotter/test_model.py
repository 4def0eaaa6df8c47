"""The spotter's network and its exported file: streaming equals offline, ensembles, damaged files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from digit_detector.classifier import model_file
from digit_detector.errors import ExportError
from digit_detector.labels import PRETRAINED
from digit_detector.spotter_file import BLOCK, HOP, dilations_of, spotter_metadata
from digit_detector.streaming.spotter import load_spotter
from ml_training.spotter.export import export_spotter
from ml_training.spotter.model import BACKGROUND, Spotter
from ml_training.train_spotter import main


@pytest.fixture(scope="module")
def spotter() -> Spotter:
    torch.manual_seed(0)
    model = Spotter(channels=16, dilations=(1, 2))
    model.train()
    with torch.no_grad():  # move the statistics of the batch norms
        for _ in range(3):
            model(0.1 * torch.randn(4, 16 * BLOCK))
    return model.eval()


def noise(count: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(count)).astype(np.float32)


@pytest.mark.parametrize("dilations", [(1, 2), (3,), (1, 1, 4, 4)])
def test_blocks_of_any_size_give_what_the_whole_stream_gives(dilations: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = Spotter(channels=8, dilations=dilations).eval()
    sound = torch.from_numpy(noise(40 * BLOCK)[None].repeat(2, axis=0))
    with torch.no_grad():
        expected, state, parts = model(sound), model.initial_state(2), []
        for size in (BLOCK, 3 * HOP, 5 * BLOCK, HOP, 40 * BLOCK):
            first = sum(part.logits.shape[1] for part in parts) * HOP
            output, state = model.step(sound[:, first : first + size], state)
            parts.append(output)
    for name in ("logits", "log_durations"):
        together = torch.cat([getattr(part, name) for part in parts], dim=1)
        assert torch.allclose(together, getattr(expected, name), atol=1e-5), name


@pytest.fixture(scope="module")
def files(spotter: Spotter, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two spotters of 16 channels and one of 8."""
    torch.manual_seed(1)
    models = spotter, Spotter(channels=16, dilations=(3,)).eval(), Spotter(channels=8, dilations=(1,)).eval()
    folder = tmp_path_factory.mktemp("spotters")
    files = [folder / name for name in ("one.onnx", "other.onnx", "narrow.onnx")]
    for model, file, seed in zip(models, files, (3, 4, 5), strict=True):
        difference = export_spotter(model, file, spotter_metadata("tiny", "tiny", 100, seed), noise(8 * BLOCK))
        assert difference < 1e-4
    return files


def test_the_exported_file_streams_what_the_network_computes_offline(spotter: Spotter, files: list[Path]) -> None:
    streaming = load_spotter(files[0])
    assert dilations_of(streaming.metadata) == (1, 2)
    states = [streaming.initial_state() for _ in range(3)]
    streams = np.stack([noise(40 * BLOCK, seed) for seed in range(3)])  # longer than the ring buffer
    blocks = [streaming(streams[:, at : at + BLOCK], states) for at in range(0, streams.shape[1], BLOCK)]
    posteriors, durations = (np.concatenate(each, axis=1) for each in zip(*blocks, strict=True))
    with torch.no_grad():
        expected = spotter(torch.from_numpy(streams))
    assert np.allclose(posteriors, expected.logits.softmax(2)[..., :BACKGROUND], atol=1e-5)
    assert np.allclose(durations, expected.log_durations.exp() - 1, atol=1e-4)


def test_a_file_that_differs_from_the_network_is_not_written(spotter: Spotter, tmp_path: Path) -> None:
    metadata, broken = spotter_metadata("tiny", "tiny", 100, 3), np.full(4 * BLOCK, np.nan, dtype=np.float32)
    with pytest.raises(ExportError, match="differs"):
        export_spotter(spotter, tmp_path / "spotter.onnx", metadata, broken)
    assert not list(tmp_path.iterdir())


def test_the_shipped_spotter_has_this_network() -> None:
    assert dilations_of(load_spotter().metadata) == Spotter().dilations


def test_an_ensemble_averages_its_spotters(files: list[Path], tmp_path: Path) -> None:
    both = tmp_path / "both.onnx"
    assert main(["--join", *map(str, files[:2]), "--out", str(both)]) == 0
    spotters = [load_spotter(file) for file in (*files[:2], both)]
    assert spotters[2].metadata["seed"] == "3 + 4"
    assert spotters[2].metadata["dilations"] == "1,2,3"
    states = [[each.initial_state(), each.initial_state()] for each in spotters]
    for blocks in noise(60 * BLOCK).reshape(30, 2, BLOCK):
        one, other, mean = (each(blocks, state) for each, state in zip(spotters, states, strict=True))
        for i in (0, 1):
            assert np.allclose((one[i] + other[i]) / 2, mean[i], atol=1e-6)


def test_spotters_that_do_not_fit_together_are_refused(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error_of(*chosen: Path) -> str:
        assert main(["--join", *map(str, chosen), "--out", str(tmp_path / "both.onnx")]) != 0
        return capsys.readouterr().err

    assert "[8, 16]" in error_of(*files)
    assert "two spotters or more, got 1" in error_of(files[0])
    content, other = files[1].read_bytes(), tmp_path / "other.onnx"
    for damaged in (content[:-9] + b"otherwise", content[:3000], b""):
        other.write_bytes(damaged)
        assert "other.onnx" in error_of(files[0], other)
    assert "mfcc.onnx" in error_of(files[0], model_file(PRETRAINED, "mfcc"))
    assert not (tmp_path / "both.onnx").exists()
