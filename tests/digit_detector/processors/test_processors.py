"""Processors: the class of the contract, trained models, baselines, the registry, statistics."""

import io
import subprocess
import sys
import threading

import numpy as np
import pytest
import soundfile

from digit_detector.errors import AudioError, ConfigError, DigitError
from digit_detector.labels import PIPELINES
from digit_detector.processors import PROCESSORS, AudioProcessor, EnsembleProcessor, ModelProcessor, load_processors
from digit_detector.processors.baselines import Baseline, BaselineProcessor
from ml_training.data.tts import VOICES, synthesize_words

CONTRACT = """
from digit_detector.processors import AudioProcessor, ExternalAPIProcessor
from ml_training.inference import load_classifier

class MLAudioProcessor(AudioProcessor):
    def __init__(self, pipeline_type="mfcc"):
        self.classifier = load_classifier("models", pipeline_type)

    def process_audio(self, audio_data):
        result = self.classifier.predict(audio_data)
        return str(result['predicted_digit'])

processors = {
    'ml_mfcc': MLAudioProcessor('mfcc'),
    'external_api': ExternalAPIProcessor(),
}
import sys
content = open(sys.argv[1], "rb").read()
assert processors["ml_mfcc"].process_audio(content) == "7"
answer = processors["ml_mfcc"].answer(content)
assert answer.digit == 7 and answer.milliseconds > 0 and answer.error is None
assert processors["ml_mfcc"].statistics.calls == 1
assert "DIGIT_API_URL" in processors["external_api"].answer(content).error
assert "torch" not in sys.modules
"""


def wav(samples: np.ndarray, rate: int = 8000, subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype=subtype)
    return file.getvalue()


@pytest.fixture(scope="module")
def seven() -> bytes:
    (samples,) = synthesize_words([(VOICES[1], "seven")], seed=3)
    return wav(samples)


def test_the_class_of_the_contract_works_when_pasted(tiny_models, tiny_folder):
    assert tiny_models.name == "models"
    command = [sys.executable, "-c", CONTRACT, str(tiny_folder / "7_speaker0_0.wav")]
    done = subprocess.run(command, cwd=tiny_models.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_models_and_their_ensemble_recognise_a_digit(seven):
    each = [ModelProcessor(pipeline) for pipeline in PIPELINES]
    for processor in each:
        text, confidence = processor.recognise(seven)
        assert text == "7"
        assert 0.3 < confidence <= 1.0
    text, confidence = EnsembleProcessor().recognise(seven)
    assert text == "7"
    mean = np.mean([processor.classifier.predict(seven)["probabilities"][7] for processor in each])
    assert confidence == pytest.approx(mean, abs=1e-6)


def test_noise_is_no_digit():
    noise = wav(np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32))
    answer = ModelProcessor("mel_cnn").answer(noise)
    assert (answer.text, answer.digit, answer.error) == ("", None, None)


def test_calls_are_counted_across_threads(seven):
    processor = ModelProcessor("mfcc")
    bad, good = processor.answer(b"no audio at all"), processor.answer(seven)
    assert bad.error
    assert bad.text == ""
    assert good.text == "7"
    threads = [threading.Thread(target=lambda: [processor.answer(seven) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counted = processor.statistics
    assert (counted.calls, counted.errors, counted.nothing, counted.digits[7]) == (82, 1, 0, 81)
    assert counted.p95_ms >= counted.p50_ms > 0
    processor.reset_statistics()
    assert processor.statistics.calls == 0


def test_a_bug_in_a_processor_is_not_hidden():
    class Broken(AudioProcessor):
        def process_audio(self, audio_data: bytes) -> str:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Broken().answer(b"")


def test_a_processor_that_cannot_run_does_not_affect_the_others(tmp_path, monkeypatch):
    monkeypatch.delenv("DIGIT_API_URL", raising=False)
    processors = load_processors()
    assert {"ml_mfcc", "ml_cnn", "ml_raw", "ensemble"} <= processors.keys()
    assert "DIGIT_API_URL" in processors.unavailable["external_api"]
    for name in ("pocketsphinx", "whisper"):
        assert (name in processors) != (f"[{name}]" in processors.unavailable.get(name, ""))
    assert processors.keys() | processors.unavailable.keys() == PROCESSORS.keys()
    assert all(processors[name].name == name and processors[name].title for name in processors)
    (tmp_path / "pocketsphinx.py").write_text("raise ImportError('libsphinx.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pocketsphinx", raising=False)
    processors = load_processors(["pocketsphinx", "ml_cnn"])
    assert list(processors) == ["ml_cnn"]
    assert "libsphinx.so" in processors.unavailable["pocketsphinx"]


@pytest.mark.parametrize("samples", [np.full(800, np.nan), np.zeros(0)])
def test_baselines_only_get_sound(samples):
    class AlwaysSeven(Baseline):
        def one(self, samples: np.ndarray) -> int:
            return 7

    processor = BaselineProcessor(AlwaysSeven, "always seven", (), "none")
    assert processor.process_audio(wav(np.tile([0.1, -0.1], 400))) == "7"
    assert processor.process_audio(wav(np.zeros(800))) == ""
    with pytest.raises(AudioError):
        processor.process_audio(wav(samples, subtype="FLOAT"))


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean ml_mfcc"):
        load_processors(["ml_mfc"])


@pytest.mark.parametrize("name", ["pocketsphinx", "whisper"])
def test_installed_baselines_recognise_a_digit(name, seven):
    processors = load_processors([name])
    if name in processors.unavailable:
        pytest.skip(processors.unavailable[name])
    assert processors[name].process_audio(seven) in [str(digit) for digit in range(10)]
    with pytest.raises(DigitError):
        processors[name].process_audio(b"no audio at all")
