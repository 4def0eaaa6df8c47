import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
from onnx import TensorProto, helper

from ml_training.config import MEL_CNN, MFCC, RAW_CNN
from ml_training.deploy.metadata import model_metadata
from ml_training.errors import AudioError, ConfigError, ModelError, SilentAudioError, UndecodableAudioError
from ml_training.inference import load_classifier

ROOT = Path(__file__).resolve().parents[1]
SEVEN = "7_speaker1_2.wav"


@pytest.fixture(scope="module")
def classifier(tiny_models):
    return load_classifier(tiny_models, MFCC)


@pytest.fixture
def models(tiny_models, tmp_path):
    """A copy of the models that a test may spoil."""
    return Path(shutil.copytree(tiny_models, tmp_path / "models"))


def write_model(path, *, window=8000, input_name="waveform", metadata=None, scale=1.0):
    """A hand-made ONNX model: the first ten samples, times `scale`, are the scores."""
    nodes = [
        helper.make_node("Slice", [input_name, "starts", "ends", "axes"], ["sliced"]),
        helper.make_node("Mul", ["sliced", "scale"], ["logits"]),
    ]
    constants = [
        helper.make_tensor(name, TensorProto.INT64, [1], [value])
        for name, value in (("starts", 0), ("ends", 10), ("axes", 1))
    ]
    constants.append(helper.make_tensor("scale", TensorProto.FLOAT, [1], [scale]))
    inputs = [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, ["N", window])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])]
    graph = helper.make_graph(nodes, "hand_made", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    ours = model_metadata(pipeline=MFCC, data="x", data_hash="x", synthetic=True, split="official", accuracy=0.1)
    helper.set_model_props(model, ours if metadata is None else metadata)
    onnx.save(model, path)


# --- predict -------------------------------------------------------------------------------------


def test_an_answer_has_the_promised_keys(classifier, tiny_folder, tiny_models):
    answer = classifier.predict(tiny_folder / SEVEN)
    assert answer["predicted_digit"] == 7
    assert type(answer["predicted_digit"]) is int
    assert len(answer["probabilities"]) == 10
    assert sum(answer["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert answer["confidence"] == max(answer["probabilities"]) == answer["probabilities"][7]
    assert [guess["digit"] for guess in answer["top3"]] == list(np.argsort(answer["probabilities"])[::-1][:3])
    assert answer["top3"][0] == {"digit": 7, "probability": answer["confidence"]}
    assert 0 < answer["inference_ms"] < 5000
    assert answer["model"] == str(tiny_models / "mfcc_classifier" / "model.onnx")
    assert json.loads(json.dumps(answer)) == answer


def test_every_kind_of_source_gives_the_same_answer(classifier, tiny_folder):
    path = tiny_folder / SEVEN
    samples, rate = soundfile.read(path, dtype="float32")
    with path.open("rb") as opened:
        sources = [path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), opened, samples]
        answers = [classifier.predict(source)["probabilities"] for source in sources]
    answers.append(classifier.predict(samples, sample_rate=rate)["probabilities"])
    for answer in answers:
        np.testing.assert_allclose(answer, answers[0], atol=1e-4)


def test_a_sample_rate_is_heard(classifier, tiny_folder):
    samples, _ = soundfile.read(tiny_folder / SEVEN, dtype="float32")
    twice = np.repeat(samples, 2)
    assert classifier.predict(twice, sample_rate=16000)["predicted_digit"] == 7
    assert classifier.predict(twice, sample_rate=8000)["predicted_digit"] != 7


def test_the_file_answers_as_the_network_does(classifier, tiny_corpus):
    assert (classifier.probabilities(tiny_corpus.waveforms).argmax(1) == tiny_corpus.labels).all()


def test_bad_audio_is_an_error_that_says_why(classifier, tmp_path):
    with pytest.raises(UndecodableAudioError, match=r"nothing\.wav"):
        classifier.predict(tmp_path / "nothing.wav")
    with pytest.raises(SilentAudioError):
        classifier.predict(np.zeros(4000, dtype=np.float32))
    with pytest.raises(AudioError):
        classifier.predict(b"these are no sounds")


# --- batch_predict -------------------------------------------------------------------------------


def test_a_batch_answers_in_order_like_one_by_one_and_names_bad_files(classifier, tiny_folder, tmp_path):
    files = [tiny_folder / f"{d}_speaker{s}_0.wav" for s in range(2) for d in range(10)]
    (tmp_path / "empty.wav").touch()
    files[3:3] = [tmp_path / "empty.wav", tmp_path / "nothing.wav"]
    entries = classifier.batch_predict(files, batch_size=4)
    assert [entry["file"] for entry in entries] == [str(file) for file in files]
    assert "is empty" in entries[3]["error"]
    assert "cannot read" in entries[4]["error"]
    assert [i for i, entry in enumerate(entries) if "error" in entry] == [3, 4]
    for file, entry in zip(files, entries, strict=True):
        if "error" not in entry:
            assert entry["predicted_digit"] == int(file.name[0])
            alone = classifier.predict(file)
            assert entry.keys() == alone.keys() | {"file"}
            np.testing.assert_allclose(entry["probabilities"], alone["probabilities"], atol=1e-5)


@pytest.mark.parametrize(("batch_size", "expected"), [(4, [4, 4, 2]), (32, [10]), (1, [1] * 10)])
def test_a_batch_goes_through_the_model_at_once(tiny_models, tiny_folder, batch_size, expected):
    sizes = []

    class Counting(type(load_classifier(tiny_models, MFCC))):
        def probabilities(self, waveforms):
            sizes.append(len(waveforms))
            return super().probabilities(waveforms)

    classifier = load_classifier(tiny_models, MFCC)
    classifier.__class__ = Counting
    classifier.batch_predict((tiny_folder / f"{d}_speaker0_1.wav" for d in range(10)), batch_size)
    assert sizes == expected


def test_a_batch_takes_other_sources_and_nothing_at_all(classifier, tiny_folder):
    assert classifier.batch_predict([]) == []
    with (tiny_folder / SEVEN).open("rb") as opened:
        entries = classifier.batch_predict([opened, (tiny_folder / SEVEN).read_bytes(), None])
    assert [entry["file"] for entry in entries] == [str(tiny_folder / SEVEN), "item 1", "item 2"]
    assert [entry.get("predicted_digit") for entry in entries] == [7, 7, None]
    assert "NoneType" in entries[2]["error"]


def test_a_batch_that_cannot_be_meant_is_refused(classifier):
    with pytest.raises(ConfigError, match=r"expected a list of files, got one: write \['x\.wav'\]"):
        classifier.batch_predict("x.wav")
    with pytest.raises(ConfigError, match="batch_size: expected 1 or more, got 0"):
        classifier.batch_predict([], batch_size=0)


# --- benchmark_speed -----------------------------------------------------------------------------


def test_benchmark_tells_consistent_figures(classifier):
    figures = classifier.benchmark_speed(num_samples=50)
    assert figures["num_samples"] == 50
    assert figures["throughput_per_second"] == pytest.approx(1000 / figures["mean_ms"])
    assert 0 < figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]
    assert figures["batch_throughput_per_second"] > 0
    with pytest.raises(ConfigError, match="num_samples"):
        classifier.benchmark_speed(num_samples=0)


# --- load_classifier -----------------------------------------------------------------------------


def test_a_flipped_bit_anywhere_is_noticed(tiny_models, tmp_path):
    content = (tiny_models / "mfcc_classifier" / "model.onnx").read_bytes()
    file = tmp_path / "mfcc_classifier" / "model.onnx"
    file.parent.mkdir()
    file.write_bytes(content)
    load_classifier(tmp_path, MFCC)
    for place in np.random.default_rng(0).integers(0, len(content), 40):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ModelError):
            load_classifier(tmp_path, MFCC)


def test_names_that_are_no_pipeline_or_thread_count(tiny_models):
    with pytest.raises(
        ConfigError, match="expected one of mfcc, mel_cnn, raw_cnn, got 'mel_cn', did you mean 'mel_cnn'"
    ):
        load_classifier(tiny_models, "mel_cn")
    with pytest.raises(ConfigError, match="threads: expected 1 to 1024, got 0"):
        load_classifier(tiny_models, MFCC, threads=0)


def test_missing_things_are_named_with_what_to_do(models, tmp_path):
    with pytest.raises(ModelError, match=r"no folder .*nowhere.*train\.py --pipeline mfcc"):
        load_classifier(tmp_path / "nowhere", MFCC)
    with pytest.raises(ModelError, match="holds no raw_cnn_classifier, only mfcc_classifier: train one"):
        load_classifier(models, RAW_CNN)
    (models / "mfcc_classifier" / "model.onnx").rename(models / "mfcc_classifier" / "best_model.pt")
    with pytest.raises(ModelError, match=r"holds no model\.onnx, only best_model\.pt: train one"):
        load_classifier(models, MFCC)


@pytest.mark.parametrize(
    "spoil", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"x" * len(b), lambda b: b[99:]]
)
def test_a_damaged_file_is_named(models, spoil, capfd):
    file = models / "mfcc_classifier" / "model.onnx"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(ModelError, match=r"model\.onnx \(\d+ bytes\) is damaged or no ONNX model"):
        load_classifier(models, MFCC)
    assert capfd.readouterr() == ("", "")


def test_foreign_files_are_refused(models):
    file = models / "mfcc_classifier" / "model.onnx"
    write_model(file)
    assert load_classifier(models, MFCC).predict(np.linspace(1, 0, 8000))["predicted_digit"] == 0
    write_model(file, metadata={})
    with pytest.raises(ModelError, match="not one of ours"):
        load_classifier(models, MFCC)
    write_model(file, window=16000)
    with pytest.raises(ModelError, match=r"\(N, 16000\).*expected waveform \(N, 8000\)"):
        load_classifier(models, MFCC)
    write_model(file, input_name="audio")
    with pytest.raises(ModelError, match="takes and gives audio"):
        load_classifier(models, MFCC)
    write_model(file, scale=float("nan"))
    with pytest.raises(ModelError, match="expected 10 finite scores"):
        load_classifier(models, MFCC)


def test_a_model_in_the_wrong_folder_is_refused(models):
    (models / "mfcc_classifier").rename(models / "mel_cnn_classifier")
    with pytest.raises(ModelError, match="pipeline is 'mfcc', expected 'mel_cnn'"):
        load_classifier(models, MEL_CNN)


# --- the program ---------------------------------------------------------------------------------


def test_door_prints_a_short_answer_from_another_folder(run_door, tiny_models, tiny_folder):
    done = run_door("inference.py", "--model-dir", tiny_models, "--pipeline", MFCC, "--audio", tiny_folder / SEVEN)
    assert (done.returncode, done.stderr) == (0, "")
    first, *bars = done.stdout.splitlines()
    assert first.startswith("7  seven, ")
    assert str(tiny_folder / SEVEN) in first
    assert len(bars) == 3
    assert bars[0].startswith("   7  █")
    assert "\033" not in done.stdout


def test_door_prints_plain_bars_where_blocks_cannot_be_shown(run_door, tiny_models, tiny_folder):
    done = run_door("inference.py", "--model_dir", tiny_models, tiny_folder / SEVEN, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "   7  ###" in done.stdout


def test_door_leaves_names_behind_two_dashes_alone(run_door, tiny_models):
    done = run_door("inference.py", "--model-dir", tiny_models, "--", "--my-voice.wav")
    assert "cannot read --my-voice.wav" in done.stderr


def test_door_prints_json(run_door, tiny_models, tiny_folder):
    one = run_door("inference.py", "--models_dir", tiny_models, "--json", "--audio", tiny_folder / SEVEN)
    answer = json.loads(one.stdout)
    assert answer["predicted_digit"] == 7
    assert answer["file"] == str(tiny_folder / SEVEN)
    files = [tiny_folder / SEVEN, "nothing.wav", tiny_folder / "3_speaker0_0.wav"]
    several = run_door("inference.py", "--model_dir", tiny_models, "--json", "--audio", *files)
    assert several.returncode == 1
    entries = json.loads(several.stdout)
    assert [entry.get("predicted_digit") for entry in entries] == [7, None, 3]
    assert several.stderr.splitlines() == [f"error: {entries[1]['error']}"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--audio", "nothing.wav"], 1, "error: cannot read nothing.wav"),
        (["--audio", "nothing.wav", "--json"], 1, "error: cannot read nothing.wav"),
        (["--pipeline", "raw_cnn", "nothing.wav"], 1, "holds no raw_cnn_classifier"),
        (["--threads", "0", "nothing.wav"], 2, "threads: expected 1 to 1024"),
        (["--pipeline", "raw", "nothing.wav"], 2, "invalid choice: 'raw'"),
        (["--audi", "nothing.wav"], 2, "unknown argument --audi, did you mean --audio?"),
        ([], 2, "name at least one recording"),
    ],
)
def test_door_says_what_is_wrong_in_one_line(run_door, tiny_models, arguments, code, message):
    done = run_door("inference.py", "--model_dir", tiny_models, *arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.bench
def test_start_up_takes_less_than_three_imports(tiny_models):
    script = ROOT / "benchmarks" / "start_up.py"
    command = [sys.executable, str(script), "--model_dir", str(tiny_models), "--runs", "5"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.real_data
def test_real_recordings_of_every_speaker_are_read(classifier, fsdd_dir):
    files = sorted((fsdd_dir / "recordings").glob("*_0.wav"))
    entries = classifier.batch_predict(files)
    assert len(entries) == 60
    assert not [entry for entry in entries if "error" in entry]
