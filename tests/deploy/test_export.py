import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from digit_detector.errors import ExportError, TrainingError
from ml_training.deploy.export import TOLERANCE, export_onnx
from ml_training.pipelines.base import Heard

METADATA = {"who": "a test", "streaming-digit-detector": "2"}


@pytest.fixture
def clips(tiny_corpus):
    return tiny_corpus.waveforms[:70]


class Simple(nn.Module):
    """Ten means of the second and the mean of all, for tests of what goes wrong."""

    def forward(self, waveforms: Tensor) -> Heard:
        return Heard(waveforms.reshape(-1, 10, 800).mean(2), waveforms.mean(1))


class OtherScoresWhenExported(Simple):
    def forward(self, waveforms: Tensor) -> Heard:
        scores, digit = super().forward(waveforms)
        return Heard(scores + (1.01 * TOLERANCE if torch.compiler.is_exporting() else 0.0), digit)


class OtherDigitScoreWhenExported(Simple):
    def forward(self, waveforms: Tensor) -> Heard:
        scores, digit = super().forward(waveforms)  # a logit near 0 moves its probability by a quarter
        return Heard(scores, digit + (4.04 * TOLERANCE if torch.compiler.is_exporting() else 0.0))


class GivesNan(Simple):
    def forward(self, waveforms: Tensor) -> Heard:
        scores, digit = super().forward(waveforms)
        return Heard(scores * float("nan"), digit)


class GivesNanForADigit(Simple):
    def forward(self, waveforms: Tensor) -> Heard:
        scores, digit = super().forward(waveforms)
        return Heard(scores, digit * float("nan"))


class NineScores(Simple):
    def forward(self, waveforms: Tensor) -> Heard:
        scores, digit = super().forward(waveforms)
        return Heard(scores[:, :9], digit)


class DigitScoreForEach(Simple):
    def forward(self, waveforms: Tensor) -> Heard:
        scores, _ = super().forward(waveforms)
        return Heard(scores, scores)


class AsksTheData(Simple):
    def forward(self, waveforms: Tensor) -> Heard:
        return super().forward(waveforms) if waveforms.sum() > 0 else Heard(waveforms[:, :10], waveforms[:, 0])


class TwoClipsWhenExported(Simple):
    def forward(self, waveforms: Tensor) -> Heard:
        clips = 2 if torch.compiler.is_exporting() else waveforms.shape[0]
        return Heard(waveforms.reshape(clips, 10, 800).mean(2), waveforms.mean(1))


def test_file_answers_like_the_network_for_any_number_of_clips(tmp_path, tiny_network, clips):
    path = tmp_path / "deep" / "model.onnx"
    difference = export_onnx(tiny_network, path, METADATA, clips)
    assert 0 < difference <= TOLERANCE
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    for count in (1, 3, 70):
        scores, digit_scores = session.run(["logits", "digit_score"], {"waveform": clips[:count]})
        with torch.no_grad():
            expected = tiny_network(torch.from_numpy(clips[:count]))
        np.testing.assert_allclose(scores, expected.scores, atol=TOLERANCE)
        np.testing.assert_allclose(digit_scores, expected.digit.sigmoid(), atol=TOLERANCE)
        assert digit_scores.shape == (count,)


def test_file_is_alone_self_contained_and_tells_nothing_of_this_machine(tmp_path, tiny_network, clips):
    export_onnx(tiny_network, tmp_path / "model.onnx", METADATA, clips)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    proto = onnx.load(tmp_path / "model.onnx")
    found = {prop.key: prop.value for prop in proto.metadata_props}
    assert len(found.pop("sha256")) == 64
    assert found == METADATA
    assert [(opset.domain, opset.version) for opset in proto.opset_import if not opset.domain] == [("", 18)]
    assert not any(onnx.external_data_helper.uses_external_data(tensor) for tensor in proto.graph.initializer)
    content = proto.SerializeToString()
    assert str(Path(__file__).parents[1]).encode() not in content
    assert b"site-packages" not in content


def test_network_is_left_as_it_was(tmp_path, tiny_network, clips):
    tiny_network.train()
    tiny_network.linear.eval()
    before = {name: value.clone() for name, value in tiny_network.state_dict().items()}
    try:
        export_onnx(tiny_network, tmp_path / "model.onnx", METADATA, clips[:2])
        assert tiny_network.training
        assert not tiny_network.linear.training
        assert all(torch.equal(value, before[name]) for name, value in tiny_network.state_dict().items())
    finally:
        tiny_network.eval()


def test_exporting_says_nothing(tmp_path, tiny_network, clips, capfd, caplog):
    level = logging.getLogger("torch.onnx").level
    export_onnx(tiny_network, tmp_path / "model.onnx", METADATA, clips[:2])
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert logging.getLogger("torch.onnx").level == level


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (OtherScoresWhenExported(), "differs from the trained network by 0.0001"),
        (OtherDigitScoreWhenExported(), "differs from the trained network by 0.0001"),
        (GivesNan(), "differs from the trained network by nan"),
        (GivesNanForADigit(), "differs from the trained network by nan"),
        (NineScores(), r"shapes \[\(64, 9\), \(64,\)\] for 64 clips, expected \[\(64, 10\), \(64,\)\]"),
        (DigitScoreForEach(), r"shapes \[\(64, 10\), \(64, 10\)\]"),
        (AsksTheData(), "cannot express this network"),
        (TwoClipsWhenExported(), "fails on 64 clips|cannot express this network"),
    ],
)
def test_a_file_that_would_not_answer_like_its_network_is_not_written(tmp_path, clips, network, message):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the old one")
    with pytest.raises(ExportError, match=message):
        export_onnx(network, path, METADATA, clips)
    assert path.read_bytes() == b"the old one"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("shape", [(0, 8000), (3, 7999), (8000,)])
def test_clips_to_compare_with_are_demanded(tmp_path, shape):
    with pytest.raises(ExportError, match="comparing needs clips"):
        export_onnx(Simple(), tmp_path / "model.onnx", METADATA, np.zeros(shape, np.float32))
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path, clips):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(TrainingError, match=r"file.model\.onnx"):
        export_onnx(Simple(), tmp_path / "file" / "model.onnx", METADATA, clips[:2])


class Tempered(nn.Module):
    """A network whose scores are divided by a small temperature."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.register_buffer("temperature", torch.tensor(1e-4))

    def forward(self, waveforms):
        scores, digit = self.network(waveforms)
        return Heard(scores / self.temperature, digit)


def test_a_small_temperature_does_not_turn_rounding_into_a_fault(tiny_network, clips, tmp_path):
    assert export_onnx(Tempered(tiny_network), tmp_path / "model.onnx", METADATA, clips) < TOLERANCE


def test_a_small_temperature_does_not_hide_another_digit_score(clips, tmp_path):
    with pytest.raises(ExportError, match=r"differs from the trained network by 0\.0001"):
        export_onnx(Tempered(OtherDigitScoreWhenExported()), tmp_path / "model.onnx", METADATA, clips)
