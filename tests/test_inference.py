import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
from onnx import TensorProto, helper

from digit_detector import classifier as classifier_module
from digit_detector.audio import LOUDEST
from digit_detector.classifier import load_classifier
from digit_detector.errors import AudioError, ConfigError, ModelError, NonFiniteAudioError, UndecodableAudioError
from digit_detector.examples import EXAMPLES, example_recording
from digit_detector.labels import MEL_CNN, MFCC, PIPELINES, RAW_CNN
from digit_detector.model_file import model_metadata
from digit_detector.selection import FSDD_TEST_HASH
from ml_training import inference
from ml_training.inference import main

ROOT = Path(__file__).resolve().parents[1]
SEVEN = "7_speaker1_2.wav"


@pytest.fixture(scope="module")
def classifier(tiny_models):
    return load_classifier(tiny_models, MFCC)


@pytest.fixture
def models(tiny_models, tmp_path):
    """A copy of the models that a test may change."""
    return Path(shutil.copytree(tiny_models, tmp_path / "models"))


def described(pipeline, **changes):
    usual = {"data": "x", "data_hash": "x", "synthetic": True, "split": "official", "accuracy": 0.1}
    return model_metadata(pipeline=pipeline, **{**usual, **changes})


def write_model(
    path, *, window=8000, input_name="waveform", metadata=None, scale=1.0, digit_scale=1.0,
    outputs=("logits", "digit_score"),
):  # fmt: skip
    """A hand-made ONNX model: the logits are ten samples times `scale`; the digit score is the largest sample."""
    nodes = [
        helper.make_node("Slice", [input_name, "starts", "ends", "axes"], ["sliced"]),
        helper.make_node("Mul", ["sliced", "scale"], ["logits"]),
        helper.make_node("ReduceMax", [input_name, "axes"], ["largest"], keepdims=0),
        helper.make_node("Mul", ["largest", "digit_scale"], ["digit_score"]),
    ]
    constants = [
        helper.make_tensor(name, TensorProto.INT64, [1], [value])
        for name, value in (("starts", 0), ("ends", 10), ("axes", 1))
    ]
    scales = (("scale", [1], [scale]), ("digit_scale", [], [digit_scale]))
    constants += [helper.make_tensor(name, TensorProto.FLOAT, dims, values) for name, dims, values in scales]
    inputs = [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, ["N", window])]
    shapes = {"logits": ["N", 10], "digit_score": ["N"]}
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in outputs]
    graph = helper.make_graph(nodes, "hand_made", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, described(MFCC) if metadata is None else metadata)
    onnx.save(model, path)


def test_an_answer_has_the_promised_keys(classifier, tiny_folder, tiny_models):
    answer = classifier.predict(tiny_folder / SEVEN)
    assert answer["predicted_digit"] == 7
    assert type(answer["predicted_digit"]) is int
    assert len(answer["probabilities"]) == 10
    assert sum(answer["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert answer["confidence"] == max(answer["probabilities"]) == answer["probabilities"][7]
    assert [guess["digit"] for guess in answer["top3"]] == list(np.argsort(answer["probabilities"])[::-1][:3])
    assert answer["top3"][0] == {"digit": 7, "probability": answer["confidence"]}
    assert answer["is_digit"] is True
    assert 0.5 < answer["digit_score"] <= 1
    assert answer["seconds"] == pytest.approx(soundfile.info(tiny_folder / SEVEN).duration, abs=1e-3)
    assert 0 < answer["inference_ms"] < 5000
    assert answer["model"] == str(tiny_models / "mfcc_classifier" / "model.onnx")
    assert json.loads(json.dumps(answer)) == answer


def test_noise_is_no_digit_but_has_probabilities(classifier):
    answer = classifier.predict(np.random.default_rng(0).normal(0, 0.1, 8000))
    assert answer["is_digit"] is False
    assert 0 <= answer["digit_score"] < 0.5
    assert answer["confidence"] == max(answer["probabilities"])
    assert sum(answer["probabilities"]) == pytest.approx(1, abs=1e-5)


def test_a_score_of_one_half_is_a_digit(models):
    write_model(models / "mfcc_classifier" / "model.onnx")
    clips = np.zeros((2, 8000))
    clips[0, 0], clips[1, 0] = 0.5, 0.4999
    answers = load_classifier(models, MFCC).batch_predict(list(clips))
    assert [(answer["digit_score"], answer["is_digit"]) for answer in answers] == [
        (0.5, True), (pytest.approx(0.4999), False)
    ]  # fmt: skip


def test_every_kind_of_source_gives_the_same_answer(classifier, tiny_folder):
    path = tiny_folder / SEVEN
    samples, rate = soundfile.read(path, dtype="float32")
    with path.open("rb") as opened:
        sources = [path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), opened, samples]
        answers = [classifier.predict(source)["probabilities"] for source in sources]
    answers.append(classifier.predict(samples, sample_rate=rate)["probabilities"])
    for answer in answers:
        np.testing.assert_allclose(answer, answers[0], atol=1e-4)


def test_bad_audio_is_an_error(classifier, tmp_path):
    with pytest.raises(UndecodableAudioError, match=r"nothing\.wav"):
        classifier.predict(tmp_path / "nothing.wav")
    with pytest.raises(AudioError):
        classifier.predict(b"these are no sounds")


def test_silence_is_no_digit(classifier, models):
    write_model(models / "mfcc_classifier" / "model.onnx")
    for answering in (classifier, load_classifier(models, MFCC)):
        for silent in (np.zeros(4000), np.full(9000, 0.25), np.full(100, 1e-8)):
            answer = answering.predict(silent.astype(np.float32))
            assert (answer["is_digit"], answer["digit_score"]) == (False, 0.0)
            assert answer["probabilities"] == pytest.approx([0.1] * 10)
    sounding = np.linspace(-0.5, 0.5, 8000, dtype=np.float32)
    alone, _ = classifier.predict_proba(sounding[None])
    together, scores = classifier.predict_proba(np.stack([np.zeros(8000, np.float32), sounding]))
    np.testing.assert_allclose(together[1], alone[0], atol=1e-5)
    assert scores[0] == 0


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_invalid_samples_raise_and_the_loudest_valid_ones_are_classified(pipeline):
    shipped = load_classifier("pretrained", pipeline)
    rng = np.random.default_rng(0)
    loudest = np.stack([
        rng.choice([-LOUDEST, LOUDEST], 8000), LOUDEST * np.sin(np.arange(8000) / 3), np.r_[LOUDEST, np.zeros(7999)],
        1e-6 * rng.standard_normal(8000),
    ]).astype(np.float32)  # fmt: skip
    probabilities, scores = shipped.predict_proba(loudest)
    assert np.isfinite(probabilities).all()
    assert np.isfinite(scores).all()
    for bad in (3e38, np.nan, np.inf, 1.01 * LOUDEST):
        loudest[2, 0] = bad
        with pytest.raises(NonFiniteAudioError, match="clip 2 of 4 has samples from"):
            shipped.predict_proba(loudest)


def test_huge_samples_fail_alone(classifier, tmp_path, tiny_folder):
    for name, length in (("huge.wav", 4000), ("huge_long.wav", 12_000)):
        soundfile.write(tmp_path / name, np.full(length, 3e38, np.float32), 8000, subtype="FLOAT")
    files = [tmp_path / "huge.wav", tiny_folder / SEVEN, tmp_path / "huge_long.wav"]
    first, second, third = classifier.batch_predict(files)
    assert second["predicted_digit"] == 7
    for file, entry in ((files[0], first), (files[2], third)):
        assert entry["error"].startswith(f"{file} is too loud from frame 0 on, 3e+38 times full scale")


def test_telephone_audio_by_suffix_and_by_flags(tiny_models, tiny_folder, tmp_path, capsys):
    samples, rate = soundfile.read(tiny_folder / SEVEN, dtype="float32")
    assert rate == 8000
    for name, encoding in (("seven.ul", "ULAW"), ("seven.raw", "ALAW")):
        with (tmp_path / name).open("wb") as file:
            soundfile.write(file, samples, rate, format="RAW", subtype=encoding)
    flags = ["--model_dir", str(tiny_models), "--pipeline", MFCC, "--json"]
    assert main([str(tmp_path / "seven.ul"), *flags]) == 0
    assert json.loads(capsys.readouterr().out)["predicted_digit"] == 7
    assert main([str(tmp_path / "seven.raw"), *flags, "--encoding", "alaw", "--rate", "8000"]) == 0
    assert json.loads(capsys.readouterr().out)["predicted_digit"] == 7
    assert main([str(tmp_path / "seven.raw"), *flags]) == 1
    assert "give its encoding" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path), *flags[:4], "--out", str(tmp_path / "t.csv"), "--encoding", "alaw"])


def test_control_characters_in_names_are_escaped(tiny_models, tiny_folder, tmp_path, capsys):
    name = tmp_path / "a\x1b]0;title\x07\n\u202e.wav"
    name.write_bytes((tiny_folder / SEVEN).read_bytes())
    missing = str(name) + "x"
    assert main([str(name), missing, "--model_dir", str(tiny_models), "--pipeline", MFCC]) == 1
    found = capsys.readouterr()
    for text in (found.out, found.err):
        assert r"a\x1b]0;title\x07\n\u202e.wav" in text
        assert not {"\x1b", "\x07", "\u202e"} & set(text)


def test_a_precision_is_another_file(models, tiny_folder):
    folder = models / "mfcc_classifier"
    with pytest.raises(ModelError, match=r"holds no model_int8\.onnx, only model\.onnx: make it with digits export"):
        load_classifier(models, MFCC, precision="int8")
    with pytest.raises(ConfigError, match="precision: expected one of fp32, int8, got 'int4'"):
        load_classifier(models, MFCC, precision="int4")
    shutil.copyfile(folder / "model.onnx", folder / "model_int8.onnx")
    answer = load_classifier(models, MFCC, precision="int8").predict(tiny_folder / SEVEN)
    assert answer["model"] == str(folder / "model_int8.onnx")
    assert inference.model_file("pretrained", MFCC, "int8").name == "mfcc_int8.onnx"


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
            assert entry["digit_score"] == pytest.approx(alone["digit_score"], abs=1e-5)


@pytest.mark.parametrize(("batch_size", "expected"), [(4, [4, 4, 2]), (32, [10]), (1, [1] * 10)])
def test_a_batch_goes_through_the_model_at_once(tiny_models, tiny_folder, batch_size, expected):
    sizes = []

    class Counting(type(load_classifier(tiny_models, MFCC))):
        def predict_proba(self, waveforms):
            sizes.append(len(waveforms))
            return super().predict_proba(waveforms)

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
    with pytest.raises(ConfigError, match=r"expected a list of files, got one: write \['x\.wav'\]"):
        classifier.batch_predict("x.wav")
    with pytest.raises(ConfigError, match="batch_size: expected 1 or more, got 0"):
        classifier.batch_predict([], batch_size=0)


def test_benchmark_figures_are_consistent(classifier):
    figures = classifier.benchmark_speed(num_samples=50)
    assert figures["num_samples"] == 50
    assert figures["throughput_per_second"] == pytest.approx(1000 / figures["mean_ms"])
    assert 0 < figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]
    assert figures["batch_throughput_per_second"] > 0
    with pytest.raises(ConfigError, match="num_samples"):
        classifier.benchmark_speed(num_samples=0)


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
    with pytest.raises(ConfigError, match="expected one of mfcc, mel_cnn, raw_cnn, got 'mel_cn', did you mean mel_cnn"):
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
    with pytest.raises(ModelError, match="no model of this package"):
        load_classifier(models, MFCC)
    write_model(file, window=16000)
    with pytest.raises(ModelError, match=r"\(N, 16000\).*expected waveform \(N, 8000\)"):
        load_classifier(models, MFCC)
    write_model(file, input_name="audio")
    with pytest.raises(ModelError, match="takes and gives audio"):
        load_classifier(models, MFCC)
    write_model(file, outputs=["logits"])
    with pytest.raises(ModelError, match=r"logits tensor\(float\) \(N, 10\): expected .*and digit_score \(N\)"):
        load_classifier(models, MFCC)
    write_model(file, outputs=["digit_score", "logits"])
    with pytest.raises(ModelError, match=r"expected .*logits \(N, 10\) and digit_score \(N\)"):
        load_classifier(models, MFCC)
    write_model(file, outputs=["logits"], metadata=described(MFCC) | {"streaming-digit-detector": "1"})
    with pytest.raises(ModelError, match=r"model\.onnx cannot answer.*--pipeline mfcc"):  # version 1 had no digit score
        load_classifier(models, MFCC)
    write_model(file, metadata=described(MEL_CNN))
    with pytest.raises(ModelError, match="pipeline is 'mel_cnn', expected 'mfcc'"):
        load_classifier(models, MFCC)
    for broken in ({"scale": float("nan")}, {"digit_scale": float("nan")}):
        write_model(file, **broken)
        with pytest.raises(ModelError, match="expected 10 finite scores"):
            load_classifier(models, MFCC)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder in the place of the package's own, with all three models; the current folder is an empty one."""
    folder, desk = tmp_path / "package" / "pretrained", tmp_path / "desk"
    folder.mkdir(parents=True)
    desk.mkdir()
    for pipeline in PIPELINES:
        write_model(folder / f"{pipeline}.onnx", metadata=described(pipeline))
    monkeypatch.setattr(classifier_module, "__file__", str(tmp_path / "package" / "classifier.py"))
    monkeypatch.chdir(desk)
    return folder


def test_pretrained_means_the_models_of_the_package(shipped, tiny_models):
    shutil.copytree(tiny_models, "pretrained")
    for pipeline in PIPELINES:
        assert load_classifier("pretrained", pipeline).model_file == shipped / f"{pipeline}.onnx"
    for named in ("./pretrained", Path("pretrained")):
        assert load_classifier(named, MFCC).model_file == Path("pretrained/mfcc_classifier/model.onnx")


def answered_by(capsys, tiny_folder, *words):
    code = inference.main([str(tiny_folder / SEVEN), *words])
    return code, capsys.readouterr().err.strip()


@pytest.mark.parametrize("gone", [[], [MEL_CNN], [MEL_CNN, RAW_CNN]])
def test_without_own_models_the_best_bundled_one_answers(shipped, gone, tiny_folder, capsys):
    for pipeline in gone:
        (shipped / f"{pipeline}.onnx").unlink()
    best = [MEL_CNN, RAW_CNN, MFCC][len(gone)]
    assert answered_by(capsys, tiny_folder) == (0, f"answered by the {best} that ships")
    assert answered_by(capsys, tiny_folder, "--pipeline", MFCC) == (0, "answered by the mfcc that ships")


def own_model(pipeline, accuracy, folder="models", **changes):
    """A model of one's own, by default measured where the shipped ones were."""
    usual = {"synthetic": False, "test_hash": FSDD_TEST_HASH, "accuracy": accuracy}
    Path(folder, f"{pipeline}_classifier").mkdir(parents=True, exist_ok=True)
    write_model(
        Path(folder, f"{pipeline}_classifier", "model.onnx"), metadata=described(pipeline, **{**usual, **changes})
    )


def test_the_most_accurate_on_one_test_answers(shipped, tiny_folder, capsys):
    for pipeline, accuracy in ((MEL_CNN, 1.0), (RAW_CNN, 0.997), (MFCC, 0.99)):
        write_model(shipped / f"{pipeline}.onnx", metadata=described(pipeline, accuracy=accuracy))
    own_model(MEL_CNN, 0.6167)
    own_model(MFCC, 0.9533)
    assert answered_by(capsys, tiny_folder) == (
        0, "answered by the mel_cnn that ships (100.0 % on FSDD's official test; your own mfcc in models has 95.3 %, "
        "--model_dir models --pipeline mfcc selects it)"
    )  # fmt: skip
    assert answered_by(capsys, tiny_folder, "--pipeline", MEL_CNN)[1].endswith(
        "your own mel_cnn in models has 61.7 %, --model_dir models selects it)"
    )
    assert answered_by(capsys, tiny_folder, "--model_dir", "models") == (
        0, "answered by your own mfcc in models (95.3 % of its test clips; on the same mel_cnn 61.7 %)"
    )  # fmt: skip
    result = answered_by(capsys, tiny_folder, "--model_dir", "models", "--pipeline", MEL_CNN)
    assert result == (0, "answered by your own mel_cnn in models")
    own_model(MFCC, 0.9967)
    better = "answered by your own mfcc in models (99.7 % on FSDD's official test; the mfcc that ships has 99.0 %)"
    assert answered_by(capsys, tiny_folder, "--pipeline", MFCC) == (0, better)
    assert answered_by(capsys, tiny_folder)[1].startswith("answered by the mel_cnn that ships")
    own_model(RAW_CNN, 1.0)  # as good as the best that ships
    assert answered_by(capsys, tiny_folder)[1].startswith("answered by your own raw_cnn in models (100.0 %")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"synthetic": True}, "learnt from synthetic speech"),
        ({"test_hash": "other clips"}, "was not measured on FSDD's official test"),
        ({"test_hash": "unknown"}, "was not measured on FSDD's official test"),
    ],
)
def test_models_without_a_comparable_accuracy_answer_only_when_named(shipped, changes, why, tiny_folder, capsys):
    own_model(MFCC, 1.0, **changes)
    note = f"your own mfcc in models {why}; --model_dir models selects it"
    assert answered_by(capsys, tiny_folder) == (0, f"answered by the mel_cnn that ships ({note})")
    assert answered_by(capsys, tiny_folder, "--pipeline", MFCC) == (0, f"answered by the mfcc that ships ({note})")
    assert answered_by(capsys, tiny_folder, "--model_dir", "models") == (0, "answered by your own mfcc in models")
    own_model(RAW_CNN, 0.2, test_hash="yet others")
    code, message = answered_by(capsys, tiny_folder, "--model_dir", "models")
    chosen = "your own raw_cnn in models"
    reason = "" if changes.get("synthetic") else "(not tested on the same clips as mfcc, so the first; "
    assert (code, message.startswith(f"answered by {chosen}"), reason in message) == (0, True, True)


def test_only_the_named_folder_answers(shipped, tiny_models, tiny_folder, capsys):
    shutil.copytree(tiny_models, "models")
    shutil.copytree(tiny_models, "other")
    assert answered_by(capsys, tiny_folder, "--model_dir", "other") == (0, "answered by your own mfcc in other")
    for words, message in (
        (["--model_dir", "nowhere"], "error: no folder nowhere"),
        (["--model_dir", ""], "error: . holds no mel_cnn_classifier"),
        (["--model_dir", "other", "--pipeline", RAW_CNN], "error: other holds no raw_cnn_classifier"),
    ):
        code, printed = answered_by(capsys, tiny_folder, *words)
        assert code == 1
        assert printed.startswith(message)


def test_a_damaged_own_model_is_an_error(shipped, tiny_models, tiny_folder, capsys):
    shutil.copytree(tiny_models, "models")
    Path("models/mfcc_classifier/model.onnx").write_bytes(b"x")
    code, message = answered_by(capsys, tiny_folder)
    assert code == 1
    assert "damaged" in message
    assert message.endswith("--model_dir pretrained selects the models that ship")
    assert answered_by(capsys, tiny_folder, "--model_dir", "pretrained")[0] == 0


def test_example_recordings_are_answered(capsys):
    for words, digit in (([], "7"), (["three"], "3")):
        assert inference.main(["--model_dir", "pretrained", "--example", *words]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"{digit}  ")
        assert str(example_recording(EXAMPLES[int(digit == "3")])) in out.splitlines()[0]


def test_program_prints_a_short_answer_from_another_folder(run_door, tiny_models, tiny_folder):
    done = run_door("inference.py", "--model-dir", tiny_models, "--pipeline", MFCC, "--audio", tiny_folder / SEVEN)
    assert (done.returncode, done.stderr) == (0, f"answered by your own mfcc in {tiny_models}\n")
    first, *bars = done.stdout.splitlines()
    assert first.startswith("7  seven, ")
    assert str(tiny_folder / SEVEN) in first
    assert len(bars) == 3
    assert bars[0].startswith("   7  █")
    assert "\033" not in done.stdout


def test_program_notes_that_one_second_was_classified(run_door, tiny_models, tiny_folder, tmp_path):
    samples, rate = soundfile.read(tiny_folder / SEVEN)
    soundfile.write(tmp_path / "talk.wav", np.concatenate([samples, np.zeros(3 * rate - len(samples))]), rate)
    note = "only the loudest second of 3.0 s was looked at; for every digit in it: digits listen --file talk.wav"
    done = run_door("inference.py", "--model_dir", tiny_models, "talk.wav", "--json")
    assert json.loads(done.stdout)["seconds"] == pytest.approx(3.0, abs=1e-3)
    assert note in run_door("inference.py", "--model_dir", tiny_models, "talk.wav").stdout
    assert "looked at" not in run_door("inference.py", "--model_dir", tiny_models, tiny_folder / SEVEN).stdout


def test_program_says_that_a_sound_is_no_digit_and_what_it_would_be(run_door, tiny_models, tmp_path):
    soundfile.write(tmp_path / "hiss.wav", np.random.default_rng(0).normal(0, 0.1, 8000), 8000)
    done = run_door("inference.py", "--model_dir", tiny_models, "hiss.wav")
    assert done.returncode == 0, done.stderr
    first, *bars = done.stdout.splitlines()
    assert re.fullmatch(r"hiss\.wav: no digit \(digit score \d+\.\d %\); nearest: \d \([a-z]+\)", first)
    assert len(bars) == 3
    answer = json.loads(run_door("inference.py", "--model_dir", tiny_models, "hiss.wav", "--json").stdout)
    assert answer["is_digit"] is False
    assert f"(digit score {100 * answer['digit_score']:.1f} %)" in first
    assert bars[0].startswith(f"   {answer['predicted_digit']}  ")


def test_program_prints_plain_bars_where_blocks_cannot_be_shown(run_door, tiny_models, tiny_folder):
    done = run_door("inference.py", "--model_dir", tiny_models, tiny_folder / SEVEN, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "   7  ###" in done.stdout


def test_program_prints_json(run_door, tiny_models, tiny_folder):
    one = run_door("inference.py", "--models_dir", tiny_models, "--json", "--audio", tiny_folder / SEVEN)
    answer = json.loads(one.stdout)
    assert (answer["predicted_digit"], answer["is_digit"]) == (7, True)
    assert one.stderr == "", "what answered is in the object"
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
        (["--pipeline", "raw", "nothing.wav"], 2, "got 'raw'"),
        (["--audi", "nothing.wav"], 2, "unknown argument --audi, did you mean --audio?"),
        ([], 2, "name at least one recording"),
        (["."], 1, "is a folder: digits predict answers all in it with --out"),
        (["--", "--my-voice.wav"], 1, "cannot read --my-voice.wav"),
    ],
)
def test_program_says_what_is_wrong_in_one_line(run_door, tiny_models, arguments, code, message):
    done = run_door("inference.py", "--model_dir", tiny_models, *arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.bench
def test_start_up_takes_little_more_than_its_imports(tiny_models):
    script = ROOT / "benchmarks" / "start_up.py"
    command = [sys.executable, str(script), "--model_dir", str(tiny_models), "--runs", "5", "--limit", "1.6"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.real_data
def test_real_recordings_of_every_speaker_are_read(classifier, fsdd_dir):
    files = sorted((fsdd_dir / "recordings").glob("*_0.wav"))
    entries = classifier.batch_predict(files)
    assert len(entries) == 60
    assert not [entry for entry in entries if "error" in entry]
