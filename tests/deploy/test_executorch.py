"""Export for ExecuTorch where it is installed; otherwise the error that names the extra."""

import importlib.util
import json

import pytest
import torch

from digit_detector.errors import ExportError, MissingExtraError
from ml_training.deploy.executorch import export_executorch
from ml_training.pipelines import get_pipeline
from ml_training.pipelines.base import ModelOutput

INSTALLED = importlib.util.find_spec("executorch") is not None
needs_executorch = pytest.mark.skipif(not INSTALLED, reason="the extra [executorch] is not installed")
ignore_warnings = pytest.mark.filterwarnings("ignore")  # of torch and ExecuTorch about each other


@pytest.mark.skipif(INSTALLED, reason="the extra [executorch] is installed")
def test_without_the_extra_the_error_names_it(tmp_path, tiny_network, tiny_corpus):
    with pytest.raises(MissingExtraError, match=r"export for ExecuTorch needs the \[executorch\] extra"):
        export_executorch(tiny_network, tmp_path / "model.pte", {}, tiny_corpus.waveforms[:2])
    assert not list(tmp_path.iterdir())


@needs_executorch
@ignore_warnings
@pytest.mark.parametrize("pipeline", ["mfcc", "mel_cnn"])
def test_the_program_computes_the_network_and_has_metadata(tmp_path, tiny_corpus, pipeline):
    from executorch.runtime import Runtime

    torch.manual_seed(0)
    model = get_pipeline(pipeline).build().eval()
    clips = tiny_corpus.waveforms[:5]
    assert export_executorch(model, tmp_path / "model.pte", {"pipeline": pipeline}, clips) < 1e-4
    program = Runtime.get().load_program((tmp_path / "model.pte").read_bytes())
    assert json.loads(program.load_method("metadata").execute([])[0]) == {"pipeline": pipeline}
    scores, digit = program.load_method("forward").execute([torch.from_numpy(clips[:1])])
    with torch.no_grad():
        expected = model(torch.from_numpy(clips[:1]))
    torch.testing.assert_close(scores, expected.digit_logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(digit, expected.presence_logit.sigmoid(), atol=1e-4, rtol=0)


class DifferentWhenExported(torch.nn.Module):
    def forward(self, waveforms):
        means = waveforms.reshape(-1, 10, 800).mean(2)
        return ModelOutput(means + (0.001 if torch.compiler.is_exporting() else 0.0), waveforms.mean(1))


@needs_executorch
@ignore_warnings
def test_a_program_with_other_outputs_is_not_written(tmp_path, tiny_corpus):
    with pytest.raises(ExportError, match=r"model\.pte differs from the trained network by 0\.001"):
        export_executorch(DifferentWhenExported(), tmp_path / "model.pte", {}, tiny_corpus.waveforms[:2])
    assert not list(tmp_path.iterdir())
