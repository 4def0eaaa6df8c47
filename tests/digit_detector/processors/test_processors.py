"""Recognisers behind one face: the contract's own class, ours, the list, and how each is counted."""

import io
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from digit_detector.errors import AudioError, ConfigError, DigitError
from digit_detector.labels import PIPELINES
from digit_detector.processors import (
    PROCESSORS,
    AudioProcessor,
    EnsembleProcessor,
    ModelProcessor,
    PocketSphinxProcessor,
    load_processors,
)  # fmt: skip
from ml_training.data.tts import VOICES, say

# As docs of this project have always shown it, to be pasted into one's own application.
PASTED = """
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
"""


def wav(samples: np.ndarray, rate: int = 8000, subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype=subtype)
    return file.getvalue()


@pytest.fixture(scope="module")
def seven() -> bytes:
    (samples,) = say([(VOICES[1], "seven")], seed=3)
    return wav(samples)


def test_the_class_of_the_contract_works_when_pasted(tiny_models: Path, tiny_folder: Path):
    code = (
        PASTED
        + f"""
content = open({str(tiny_folder / "7_speaker0_0.wav")!r}, "rb").read()
assert processors["ml_mfcc"].process_audio(content) == "7"
answer = processors["ml_mfcc"].answer(content)
assert answer.digit == 7 and answer.milliseconds > 0 and answer.error is None
assert processors["ml_mfcc"].statistics.calls == 1
assert "DIGIT_API_URL" in processors["external_api"].answer(content).error
import sys
assert "torch" not in sys.modules
"""
    )
    models = tiny_models.parent / tiny_models.name
    folder = models if models.name == "models" else None
    workplace = models.parent
    if folder is None:  # the class asks for a folder of that name
        workplace = tiny_models.parent / "pasted"
        workplace.mkdir(exist_ok=True)
        if not (workplace / "models").exists():
            (workplace / "models").symlink_to(tiny_models)
    done = subprocess.run([sys.executable, "-c", code], cwd=workplace, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_model_says_which_digit(pipeline: str, seven: bytes):
    text, confidence = ModelProcessor(pipeline).recognise(seven)
    assert text == "7"
    assert confidence is not None
    assert 0.3 < confidence <= 1.0


def test_the_ensemble_is_the_mean_of_the_three(seven: bytes):
    text, confidence = EnsembleProcessor().recognise(seven)
    each = [ModelProcessor(pipeline).classifier.predict(seven)["probabilities"][7] for pipeline in PIPELINES]
    assert text == "7"
    assert confidence == pytest.approx(np.mean(each), abs=1e-6)


def test_what_is_no_digit_is_answered_by_nothing():
    noise = wav(np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32))
    answer = ModelProcessor("mel_cnn").answer(noise)
    assert (answer.text, answer.digit, answer.error) == ("", None, None)


def test_an_error_is_part_of_the_answer_and_counted(seven: bytes):
    processor = ModelProcessor("mfcc")
    bad, good = processor.answer(b"no audio at all"), processor.answer(seven)
    assert bad.error
    assert bad.text == ""
    assert good.text == "7"
    counted = processor.statistics
    assert (counted.calls, counted.errors, counted.nothing) == (2, 1, 0)
    assert counted.digits[7] == 1
    assert counted.p95_ms >= counted.p50_ms > 0
    processor.reset_statistics()
    assert processor.statistics.calls == 0


def test_threads_are_counted_all(seven: bytes):
    processor = ModelProcessor("mfcc")
    threads = [threading.Thread(target=lambda: [processor.answer(seven) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert processor.statistics.calls == 80
    assert processor.statistics.digits[7] == 80


def test_a_bug_in_somebody_elses_processor_is_not_hidden():
    class Broken(AudioProcessor):
        def process_audio(self, audio_data: bytes) -> str:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Broken().answer(b"")


def test_who_cannot_run_says_why_and_leaves_the_rest_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DIGIT_API_URL", raising=False)
    processors = load_processors()
    assert {"ml_mfcc", "ml_cnn", "ml_raw", "ensemble"} <= processors.keys()
    assert "DIGIT_API_URL" in processors.unavailable["external_api"]
    for name in ("pocketsphinx", "whisper"):
        assert (name in processors) != (f"[{name}]" in processors.unavailable.get(name, ""))
    assert processors.keys() | processors.unavailable.keys() == PROCESSORS.keys()
    assert all(processors[name].name == name and processors[name].title for name in processors)


def test_a_package_that_is_broken_leaves_the_rest_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "pocketsphinx.py").write_text("raise ImportError('libsphinx.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pocketsphinx", raising=False)
    processors = load_processors(["pocketsphinx", "ml_cnn"])
    assert list(processors) == ["ml_cnn"]
    assert "libsphinx.so" in processors.unavailable["pocketsphinx"]


@pytest.mark.parametrize("samples", [np.full(800, np.nan), np.zeros(0)])
def test_others_are_asked_only_about_sound(samples: np.ndarray):
    class Dreams(PocketSphinxProcessor):
        def __init__(self) -> None:
            self._recogniser, self._turn = self, threading.Lock()

        def file(self, content: bytes) -> int:
            return 7

    assert Dreams().process_audio(wav(np.array([0.1, -0.1]))) == "7"
    assert Dreams().process_audio(wav(np.zeros(800))) == "", "silence holds no digit, and they are not asked"
    with pytest.raises(AudioError):
        Dreams().process_audio(wav(samples, subtype="FLOAT"))


def test_an_unknown_name_is_told():
    with pytest.raises(ConfigError, match="did you mean ml_mfcc"):
        load_processors(["ml_mfc"])


@pytest.mark.parametrize("name", ["pocketsphinx", "whisper"])
def test_others_hear_a_digit_where_they_are_installed(name: str, seven: bytes):
    processors = load_processors([name])
    if name in processors.unavailable:
        pytest.skip(processors.unavailable[name])
    assert processors[name].process_audio(seven) in [str(digit) for digit in range(10)]
    with pytest.raises(DigitError):
        processors[name].process_audio(b"no audio at all")
