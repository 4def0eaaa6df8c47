"""digits inspect: lines, JSON, and one line for other files."""

import json
import shutil

from digit_detector.acoustic_file import FILE
from digit_detector.classifier import model_file
from digit_detector.labels import MEL_CNN, MFCC

SHIPPED = model_file("pretrained", MEL_CNN)


def test_a_classifier(run_door, tiny_models):
    done = run_door("inspect_model.py", SHIPPED)
    assert (done.returncode, done.stderr) == (0, "")
    rows = {name: text.strip() for name, text in (line.split("  ", 1) for line in done.stdout.splitlines())}
    expected = {
        "file": f"{SHIPPED.stat().st_size:,} bytes, checksum intact (", "model": "mel_cnn: log-mel + 2D CNN",
        "precision": "fp32", "takes": "waveform float (N, 8000): 8000 samples at 8000 Hz",
        "gives": "logits float (N, 10), digit_score float (N)", "words": "zero one two", "trained on": "FSDD v1.0.10",
        "not a digit": "synthetic words", "accuracy": "(split official)", "training": "seed 0",
        "made by": "version 0.1.0, commit ", "opset": "18", "operators": " Conv", "parameters": "(100.0 %) float32",
        "multiply-adds": " a clip, 0 (0.0 %) in int8",
    }  # fmt: skip
    assert {name: text in rows[name] for name, text in expected.items()} == dict.fromkeys(expected, True)
    assert len(rows["data hash"]) == 64
    own = run_door("inspect_model.py", tiny_models / f"{MFCC}_classifier" / "model.onnx").stdout
    assert "not trained: its digit score means nothing" in own
    assert "synthetic speech" in own


def test_json_and_acoustic_model(run_door):
    found = json.loads(run_door("inspect_model.py", SHIPPED, "--json").stdout)
    assert (found["intact"], found["size"], found["metadata"]["pipeline"]) == (True, SHIPPED.stat().st_size, MEL_CNN)
    assert found["graph"]["multiply_adds"] > 10_000_000
    acoustic = run_door("inspect_model.py", SHIPPED.parent / FILE).stdout
    for text in (
        "acoustic model of live detection",
        "sound float (N, 256)",
        "zero one two",
        "double triple other",
        " 32 ms",
    ):
        assert text in acoustic
    assert "not a digit" not in acoustic


def test_damaged_files_are_refused(run_door, tmp_path):
    content = bytearray(SHIPPED.read_bytes())
    (tmp_path / "short.onnx").write_bytes(content[:200_000])
    content[100_000] ^= 1  # in a weight
    (tmp_path / "model.onnx").write_bytes(content)
    for flags in ((), ("--json",)):
        done = run_door("inspect_model.py", "model.onnx", *flags)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert done.stderr.startswith("error: model.onnx was changed after its export: its checksum is not right")
        assert ("NOT that of its export" in done.stdout) if not flags else not json.loads(done.stdout)["intact"]
    done = run_door("inspect_model.py", "short.onnx")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert done.stderr.startswith("error: short.onnx (200000 bytes) is damaged or no ONNX model: ")
    assert run_door("inspect_model.py").returncode == 2


def test_without_the_onnx_package_it_names_it(run_door, tmp_path):
    shutil.copyfile(SHIPPED, tmp_path / "model.onnx")
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['onnx'] = None\n")
    done = run_door("inspect_model.py", "model.onnx", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "checksum intact" in done.stdout
    assert "(pip install onnx)" in done.stdout
    assert "opset" not in done.stdout
