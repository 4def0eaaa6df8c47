"""Graphs of models, counted by hand and by torch."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from digit_detector.classifier import model_file
from digit_detector.errors import ModelError
from digit_detector.inspection import inspect_model
from digit_detector.labels import MEL_CNN, MFCC, PIPELINES
from digit_detector.model_file import FORMAT_KEY, add_checksum, model_metadata, reserve_checksum
from ml_training.pipelines import get_pipeline


def described(**changes):
    values = model_metadata(pipeline=MFCC, data="x", data_hash="h", synthetic=True, split="official", accuracy=0.5)
    return {**values, **changes}


def write(path, metadata, shaped=True):
    """A convolution of 3 maps, a product in 8 bits and a dense layer with its input transposed, by hand."""
    weights = {
        "kernels": np.zeros((3, 1, 5), np.float32), "narrow": np.zeros((40, 6), np.int8),
        "scale": np.ones((), np.float32), "dense": np.zeros((1, 10), np.float32),
        "shape": np.array([0, 3, 40] if shaped else [0, 3, -1]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Unsqueeze", ["waveform", "one"], ["map"]),
        helper.make_node("Conv", ["map", "kernels"], ["maps"], strides=[200]),  # 3 x 40 places
        helper.make_node("Reshape", ["maps", "shape"], ["shaped"]),
        helper.make_node("DequantizeLinear", ["narrow", "scale"], ["wide"]),
        helper.make_node("MatMul", ["shaped", "wide"], ["mixed"]),  # 3 x 6 sums of 40
        helper.make_node("ReduceMean", ["mixed"], ["mean"], keepdims=0, axes=[1, 2]),
        helper.make_node("Unsqueeze", ["mean", "zero"], ["row"]),
        helper.make_node("Gemm", ["row", "dense"], ["logits"], transA=1),  # N x 10 sums of 1
        helper.make_node("Sigmoid", ["mean"], ["digit_score"]),
    ]
    tables = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    tables += [numpy_helper.from_array(np.array([i]), name) for i, name in enumerate(("zero", "one"))]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
               for n, s in (("logits", ["N", 10]), ("digit_score", ["N"]))]  # fmt: skip
    waveform = helper.make_tensor_value_info("waveform", TensorProto.FLOAT, ["N", 8000])
    graph = helper.make_graph(nodes, "by_hand", [waveform], outputs, tables)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, metadata)
    path.write_bytes(model.SerializeToString())


def test_all_of_it_is_counted(tmp_path):
    write(tmp_path / "model.onnx", described(precision="int8"))
    found = inspect_model(tmp_path / "model.onnx")
    assert (found.size, found.sealed, found.intact) == ((tmp_path / "model.onnx").stat().st_size, False, True)
    assert found.precision == "int8"
    assert found.metadata["data_hash"] == "h"
    assert found.inputs == {"waveform": "float (N, 8000)"}
    assert found.outputs == {"logits": "float (N, 10)", "digit_score": "float (N)"}
    graph = found.graph
    assert graph is not None
    assert graph.opset == 17
    assert graph.operators["Unsqueeze"] == 2
    assert sum(graph.operators.values()) == 9
    assert graph.numbers == {"int8": 240, "float32": 3 * 5 + 1 + 10, "int64": 3 + 2}
    convolution, product, dense = 3 * 40 * 5, 3 * 6 * 40, 10
    assert graph.multiply_adds == convolution + product + dense
    assert graph.int8_multiply_adds == product
    assert graph.uncounted == 0


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_multiply_adds_are_those_that_torch_counts(pipeline):
    found = inspect_model(model_file("pretrained", pipeline))
    model = get_pipeline(pipeline).build().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 8000))
    assert found.graph is not None
    assert found.graph.multiply_adds == counter.get_total_flops() // 2
    assert found.graph.int8_multiply_adds == 0
    assert found.intact
    assert found.sealed
    learnt = sum(p.numel() for p in model.parameters())
    assert learnt * 0.98 < found.graph.numbers["float32"] < learnt + 60_000


def test_a_changed_bit_is_found_and_older_files_are_read(tmp_path):
    path = tmp_path / "model.onnx"
    write(path, reserve_checksum(described()))
    content = add_checksum(path.read_bytes())
    for changed, intact in ((content, True), (content.replace(b"official", b"Official"), False)):
        path.write_bytes(changed)
        found = inspect_model(path)
        assert (found.sealed, found.intact) == (True, intact)
    write(path, {FORMAT_KEY: "1", "pipeline": MEL_CNN})
    found = inspect_model(path)
    assert (found.metadata, found.precision) == ({FORMAT_KEY: "1", "pipeline": MEL_CNN}, "fp32")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot read .*model.onnx: No such file"),
        (b"", r"model\.onnx \(0 bytes\) is damaged or no ONNX model"),
        (b"this is text", "is damaged or no ONNX model"),
        (0.5, "is damaged or no ONNX model"),
        (1.0, "is an ONNX model, but no model of this package: its metadata has no 'streaming-digit-detector'"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, content, reason):
    path = tmp_path / "model.onnx"
    if isinstance(content, float):
        write(path, {})
        path.write_bytes(path.read_bytes()[: math.floor(content * path.stat().st_size)])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=reason) as caught:
        inspect_model(path)
    assert "\n" not in str(caught.value)


def test_neither_onnx_nor_torch_is_needed():
    code = """
import sys
sys.modules["onnx"] = None
from digit_detector.inspection import inspect_model
found = inspect_model(sys.argv[1])
print(found.graph is None, found.intact, sorted({"torch", "onnxscript"} & set(sys.modules)))
"""
    command = [sys.executable, "-c", code, str(model_file("pretrained", MEL_CNN))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "True True []\n"
