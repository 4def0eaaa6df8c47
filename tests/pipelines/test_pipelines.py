"""The three pipelines: shapes of the contract, invariance to level, their registry."""

from __future__ import annotations

import math

import pytest
import torch

from digit_detector.audio import NUM_SAMPLES
from digit_detector.errors import ConfigError
from digit_detector.labels import LABELS, MEL_CNN, MFCC, PIPELINES, RAW_CNN
from ml_training.data.corpus import Corpus
from ml_training.pipelines import DigitModel, get_pipeline, pipeline_names
from ml_training.pipelines.base import OUTPUTS, PRESENCE_CONFIDENCE_WEIGHT, ModelOutput
from ml_training.pipelines.features import mel_filters
from ml_training.pipelines.mfcc_pipeline import BANDS, FEATURES, VOICES, MfccClassifier

LARGEST_BYTES = {MFCC: 1_000_000, MEL_CNN: 1_000_000, RAW_CNN: 1_500_000}


@pytest.fixture(params=PIPELINES)
def model(request: pytest.FixtureRequest) -> DigitModel:
    torch.manual_seed(0)
    return get_pipeline(request.param).build()


def fit(model: DigitModel, waveforms: torch.Tensor) -> None:
    """Fit the normalization of the features."""
    features = model.eval().features(waveforms, False)
    model.fit_normalizer(waveforms if features is None else features)


def probabilities(outputs: ModelOutput) -> torch.Tensor:
    """(B, 11): those of the digits, and the digit score."""
    digits, presence = (each.float() for each in outputs)
    return torch.cat([digits.softmax(dim=1), presence.sigmoid()[:, None]], dim=1)


@pytest.fixture
def waveforms(tiny_corpus: Corpus) -> torch.Tensor:
    return torch.from_numpy(tiny_corpus.waveforms[::10])


def test_the_registry_holds_the_contracts_names_and_small_models() -> None:
    assert pipeline_names() == PIPELINES
    for name in PIPELINES:
        assert get_pipeline(name).name == name
        assert sum(p.numel() for p in get_pipeline(name).build().parameters()) * 4 < LARGEST_BYTES[name]
    with pytest.raises(ConfigError, match="did you mean mel_cnn"):
        get_pipeline("mel-cnn")


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_waveforms_become_ten_scores_and_a_presence_score(model: DigitModel, batch: int) -> None:
    outputs = model.eval()(torch.randn(batch, NUM_SAMPLES))
    assert (outputs.digit_logits.shape, outputs.presence_logit.shape) == ((batch, len(LABELS)), (batch,))
    assert all(torch.isfinite(each).all() for each in outputs)


class Constant(DigitModel):
    """The same outputs (OUTPUTS,) for every clip."""

    def __init__(self, outputs: torch.Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward_waveform(self, waveforms: torch.Tensor) -> torch.Tensor:
        return self.outputs.expand(len(waveforms), -1)


def certain_of(probability: float, digit: float) -> torch.Tensor:
    """(11,) outputs in which the fourth digit has a probability, the others share the rest; presence logit `digit`."""
    shares = torch.full((10,), (1 - probability) / 9)
    shares[3] = probability
    return torch.cat([shares.log() + 2.0, torch.tensor([digit])])  # scores of any sum make the same probabilities


@pytest.mark.parametrize("digit", [-2.0, 0.0, 1.5])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9, 0.999])
def test_the_likeliest_digit_counts_towards_presence_in_evaluation(probability: float, digit: float) -> None:
    model = Constant(certain_of(probability, digit))
    outputs = model.eval()(torch.zeros(2, NUM_SAMPLES))
    expected = digit + PRESENCE_CONFIDENCE_WEIGHT * math.log(probability / (1 - probability))
    assert outputs.presence_logit.tolist() == pytest.approx([expected] * 2, abs=1e-3)
    assert outputs.digit_logits[0].softmax(dim=0)[3] == pytest.approx(probability)
    assert model.train()(torch.zeros(1, NUM_SAMPLES)).presence_logit.tolist() == [digit]
    model.eval().temperature.fill_(5.0)
    assert torch.equal(model(torch.zeros(2, NUM_SAMPLES)).presence_logit, outputs.presence_logit)


def test_scores_do_not_depend_on_level_or_offset(model: DigitModel, waveforms: torch.Tensor) -> None:
    fit(model, waveforms)
    model.eval()
    with torch.no_grad():
        expected = probabilities(model(waveforms))
        for gain, offset in ((0.01, 0.0), (0.5, 0.1)):
            heard = probabilities(model(waveforms * gain + offset))
            torch.testing.assert_close(heard, expected, atol=2e-3, rtol=0)


def test_features_stay_in_full_precision_under_autocast(model: DigitModel, waveforms: torch.Tensor) -> None:
    fit(model, waveforms)
    with torch.no_grad():
        expected = probabilities(model.eval()(waveforms))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = probabilities(model(waveforms))
    torch.testing.assert_close(mixed, expected, atol=0.05, rtol=0)


def test_silence_has_finite_scores_and_gradients(model: DigitModel) -> None:
    model.train()
    waveforms = torch.zeros(4, NUM_SAMPLES)
    waveforms[1:] = torch.randn(3, NUM_SAMPLES)
    scores, digit = model(waveforms)
    (scores.square().sum() + digit.square().sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_every_parameter_learns(model: DigitModel, waveforms: torch.Tensor) -> None:
    fit(model, waveforms)
    model.train()
    scores, digit = model(waveforms)
    (torch.nn.functional.cross_entropy(scores, torch.arange(len(waveforms)) % 10) - digit.mean()).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_mfcc_features_are_156_standardised_numbers(waveforms: torch.Tensor) -> None:
    model = MfccClassifier()
    fit(model, waveforms)
    model.eval()
    found = model.statistics(waveforms)
    assert found.shape == (len(waveforms), FEATURES) == (len(waveforms), 156)
    standardised = (found - model.mean) / model.scale
    torch.testing.assert_close(standardised.mean(dim=0), torch.zeros(156), atol=1e-3, rtol=0)
    scaler = model.scaler()
    assert len(scaler["features"]) == len(set(scaler["features"])) == len(scaler["mean"]) == 156
    assert scaler["features"][0] == "mean_mfcc0"
    assert scaler["features"][-1] == "min_delta" + "12"


def test_mfcc_hears_every_clip_by_three_vocal_tracts(waveforms: torch.Tensor) -> None:
    model = MfccClassifier()
    fit(model, waveforms)
    model.eval()
    by_voice = model.statistics.by_voice(waveforms)
    assert by_voice.shape == (len(waveforms) * len(VOICES), FEATURES)
    torch.testing.assert_close(by_voice[VOICES.index(1.0) :: len(VOICES)], model.statistics(waveforms))
    heard = []
    for factor in VOICES:
        model.statistics.log_mel.filters.copy_(mel_filters(BANDS, factor))
        model.statistics.voices = model.statistics.log_mel.filters[None].repeat(len(VOICES), 1, 1)
        heard.append(model.forward_waveform(waveforms))
        assert (heard[0] - heard[-1]).abs().max() > 0.01 or factor == VOICES[0]
    again = MfccClassifier()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(
        again.eval().forward_waveform(waveforms), torch.stack(heard).mean(dim=0), atol=1e-4, rtol=0
    )


# --- temperature ---------------------------------------------------------------------------------


def test_the_temperature_divides_the_scores_in_evaluation_alone(model: DigitModel, waveforms: torch.Tensor) -> None:
    fit(model, waveforms)
    with torch.no_grad():
        plain = model.eval()(waveforms)
        model.temperature.fill_(2.5)
        torch.testing.assert_close(model(waveforms).digit_logits, plain.digit_logits / 2.5)
        torch.testing.assert_close(model(waveforms).presence_logit, plain.presence_logit)
        torch.manual_seed(0)
        hot = model.train()(waveforms)
        model.temperature.fill_(1.0)
        torch.manual_seed(0)
        torch.testing.assert_close(tuple(model(waveforms)), tuple(hot), rtol=0, atol=1e-4)


def test_a_pipeline_cannot_forget_the_temperature() -> None:
    with pytest.raises(TypeError, match="define forward_waveform"):

        class Forgetful(DigitModel):
            def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
                return waveforms


def test_a_pipeline_of_0_1_still_works(capsys: pytest.CaptureFixture[str]) -> None:
    class Earlier(DigitModel):
        def logits(self, waveforms: torch.Tensor) -> torch.Tensor:
            return waveforms[:, :OUTPUTS]

    assert "Earlier.logits is now named forward_waveform" in capsys.readouterr().err
    assert Earlier()(torch.ones(2, NUM_SAMPLES)).digit_logits.shape == (2, 10)


@pytest.mark.parametrize("name", PIPELINES)
def test_another_width_changes_the_layers_and_nothing_else(name: str) -> None:
    waveforms = torch.randn(3, 8000)
    counts = []
    for width in (0.5, 1.0, 2.0):
        model = get_pipeline(name).model(width).eval()
        assert model(waveforms).digit_logits.shape == (3, 10)
        counts.append(sum(parameter.numel() for parameter in model.parameters()))
    assert counts == sorted(counts)
    assert len(set(counts)) == 3
    assert counts[1] == sum(parameter.numel() for parameter in get_pipeline(name).build().parameters())
