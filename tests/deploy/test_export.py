"""ONNX export: equal outputs or no file."""

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from digit_detector.errors import ExportError, TrainingError
from ml_training.deploy.export import TOLERANCE, export_onnx
from ml_training.pipelines.base import ModelOutput

METADATA = {"author": "a test", "streaming-digit-detector": "2"}


@pytest.fixture
def clips(tiny_corpus):
    return tiny_corpus.waveforms[:70]


def exporting():
    return torch.compiler.is_exporting()


class Faulty(nn.Module):
    """Ten means of the second and the mean of all, changed by `fault`."""

    def __init__(self, fault=""):
        super().__init__()
        self.fault = fault

    def forward(self, waveforms):
        clips = 2 if self.fault == "two clips" and exporting() else waveforms.shape[0]
        scores, digit = waveforms.reshape(clips, 10, 800).mean(2), waveforms.mean(1)
        if self.fault == "scores" and exporting():
            scores = scores + 1.01 * TOLERANCE
        if self.fault == "digit score" and exporting():  # a logit near 0 moves its probability by a quarter
            digit = digit + 4.04 * TOLERANCE
        if self.fault == "nan scores":
            scores = scores * float("nan")
        if self.fault == "nan digit score":
            digit = digit * float("nan")
        if self.fault == "nine scores":
            scores = scores[:, :9]
        if self.fault == "ten digit scores":
            digit = scores
        if self.fault == "data-dependent" and waveforms.sum() > 0:
            scores = waveforms[:, :10]
        return ModelOutput(scores, digit)


def test_the_file_computes_the_network_for_any_number_of_clips(tmp_path, tiny_network, clips, capfd, caplog):
    path = tmp_path / "deep" / "model.onnx"
    level = logging.getLogger("torch.onnx").level
    assert 0 < export_onnx(tiny_network, path, METADATA, clips) <= TOLERANCE
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert logging.getLogger("torch.onnx").level == level
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    for count in (1, 3, 70):
        scores, digit_scores = session.run(["logits", "digit_score"], {"waveform": clips[:count]})
        with torch.no_grad():
            expected = tiny_network(torch.from_numpy(clips[:count]))
        np.testing.assert_allclose(scores, expected.digit_logits, atol=TOLERANCE)
        np.testing.assert_allclose(digit_scores, expected.presence_logit.sigmoid(), atol=TOLERANCE)
        assert digit_scores.shape == (count,)


def test_the_file_is_self_contained_and_names_no_path(tmp_path, tiny_network, clips):
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


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("scores", "differs from the trained network by 0.0001"),
        ("digit score", "differs from the trained network by 0.0001"),
        ("nan scores", "differs from the trained network by nan"),
        ("nan digit score", "differs from the trained network by nan"),
        ("nine scores", r"shapes \[\(64, 9\), \(64,\)\] for 64 clips, expected \[\(64, 10\), \(64,\)\]"),
        ("ten digit scores", r"shapes \[\(64, 10\), \(64, 10\)\]"),
        ("data-dependent", "cannot express this network"),
        ("two clips", "fails on 64 clips|cannot express this network"),
    ],
)
def test_a_file_with_other_outputs_is_not_written(tmp_path, clips, fault, message):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the old one")
    with pytest.raises(ExportError, match=message):
        export_onnx(Faulty(fault), path, METADATA, clips)
    assert path.read_bytes() == b"the old one"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_invalid_clips_and_places_are_named(tmp_path, clips):
    for shape in ((0, 8000), (3, 7999), (8000,)):
        with pytest.raises(ExportError, match="comparing needs clips"):
            export_onnx(Faulty(), tmp_path / "model.onnx", METADATA, np.zeros(shape, np.float32))
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(TrainingError, match=r"file.model\.onnx"):
        export_onnx(Faulty(), tmp_path / "file" / "model.onnx", METADATA, clips[:2])
