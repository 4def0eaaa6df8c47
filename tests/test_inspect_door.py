"""The door of inspection: lines for people, an object for programs, one line for what is no model."""

import json
import shutil

import pytest

from digit_detector.classifier import model_file
from digit_detector.labels import MEL_CNN, MFCC

SHIPPED = model_file("pretrained", MEL_CNN)


def test_all_that_a_model_is_in_words(run_door):
    done = run_door("inspect_model.py", SHIPPED)
    assert (done.returncode, done.stderr) == (0, "")
    rows = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    told = {name: text.strip() for name, text in rows.items()}
    assert told["model"] == "mel_cnn: log-mel + 2D CNN"
    assert f"{SHIPPED.stat().st_size:,} bytes, checksum intact (" in told["file"]
    assert told["precision"] == "fp32"
    assert told["takes"] == "waveform float (N, 8000): 8000 samples at 8000 Hz"
    assert told["gives"] == "logits float (N, 10), digit_score float (N)"
    assert told["words"].startswith("zero one two")
    assert told["learnt from"].startswith("FSDD v1.0.10")
    assert len(told["data hash"]) == 64
    assert "synthetic words" in told["not a digit"]
    assert " % of " in told["accuracy"]
    assert "(split official)" in told["accuracy"]
    assert "seed 0" in told["training"]
    assert "version 0.1.0, commit " in told["made by"]
    assert told["opset"] == "18"
    assert " Conv" in told["operators"]
    assert "(100.0 %) float32" in told["parameters"]
    assert told["multiply-adds"].endswith(" a clip, 0 (0.0 %) in int8")


def test_the_same_for_programs(run_door):
    done = run_door("inspect_model.py", SHIPPED, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert found["intact"] is True
    assert found["size"] == SHIPPED.stat().st_size
    assert found["metadata"]["pipeline"] == MEL_CNN
    assert found["graph"]["multiply_adds"] > 10_000_000


def test_a_model_of_ones_own(run_door, tiny_models):
    done = run_door("inspect_model.py", tiny_models / f"{MFCC}_classifier" / "model.onnx")
    assert done.returncode == 0
    assert "not a digit    never learnt: its digit score means nothing" in done.stdout
    assert "synthetic speech" in done.stdout


@pytest.mark.parametrize("flag", [(), ("--json",)])
def test_a_tampered_file_is_shown_and_refused(run_door, tmp_path, flag):
    content = bytearray(SHIPPED.read_bytes())
    content[100_000] ^= 1  # in a weight
    (tmp_path / "model.onnx").write_bytes(content)
    done = run_door("inspect_model.py", "model.onnx", *flag)
    assert done.returncode == 1
    assert done.stderr == (
        "error: model.onnx was changed after its export: its checksum is not right; copy or export it again\n"
    )
    assert ("NOT that of its export" in done.stdout) if not flag else (json.loads(done.stdout)["intact"] is False)


def test_a_file_cut_off_is_one_line(run_door, tmp_path):
    (tmp_path / "model.onnx").write_bytes(SHIPPED.read_bytes()[:200_000])
    done = run_door("inspect_model.py", "model.onnx")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: model.onnx (200000 bytes) is damaged or no ONNX model: ")


def test_without_the_onnx_package_it_says_what_is_missing(run_door, tmp_path):
    shutil.copyfile(SHIPPED, tmp_path / "model.onnx")
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['onnx'] = None\n")
    done = run_door("inspect_model.py", "model.onnx", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "checksum intact" in done.stdout
    assert "they need the onnx package (pip install onnx)" in done.stdout
    assert "opset" not in done.stdout


def test_a_file_has_to_be_named(run_door):
    done = run_door("inspect_model.py")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
