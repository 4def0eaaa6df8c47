"""ExecuTorch, where it is installed; where not, the error that names the extra."""

import importlib.util
import json

import pytest
import torch
from torch import Tensor

from digit_detector.errors import ExportError, MissingExtraError
from ml_training.deploy import executorch as target
from ml_training.deploy.executorch import export_executorch
from ml_training.pipelines import get_pipeline
from ml_training.pipelines.base import Heard

THERE = importlib.util.find_spec("executorch") is not None
needs_executorch = pytest.mark.skipif(not THERE, reason="the extra [executorch] is not installed")
ignore = pytest.mark.filterwarnings("ignore")  # what torch and ExecuTorch say of each other


@pytest.mark.skipif(THERE, reason="the extra [executorch] is installed")
def test_without_the_extra_the_error_names_it(tmp_path, tiny_network, tiny_corpus):
    with pytest.raises(MissingExtraError, match=r"export for ExecuTorch needs the \[executorch\] extra"):
        export_executorch(tiny_network, tmp_path / "model.pte", {}, tiny_corpus.waveforms[:2])
    assert not list(tmp_path.iterdir())


@needs_executorch
@ignore
@pytest.mark.parametrize("pipeline", ["mfcc", "mel_cnn"])
def test_the_program_answers_like_the_network_and_says_what_it_is(tmp_path, tiny_corpus, pipeline):
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
    torch.testing.assert_close(scores, expected.scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(digit, expected.digit.sigmoid(), atol=1e-4, rtol=0)


class OtherWhenExported(torch.nn.Module):
    def forward(self, waveforms: Tensor) -> Heard:
        means = waveforms.reshape(-1, 10, 800).mean(2)
        return Heard(means + (0.001 if torch.compiler.is_exporting() else 0.0), waveforms.mean(1))


@needs_executorch
@ignore
def test_a_program_that_answers_otherwise_is_not_written(tmp_path, tiny_corpus):
    with pytest.raises(ExportError, match=r"model\.pte differs from the trained network by 0\.001"):
        export_executorch(OtherWhenExported(), tmp_path / "model.pte", {}, tiny_corpus.waveforms[:2])
    assert not list(tmp_path.iterdir())
    assert target.TOLERANCE < 0.001
