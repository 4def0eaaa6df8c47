"""Recordings that are quickly made, and the tables that folders of them become."""

import csv
import json
import os
import struct

import numpy as np
import pytest

from digit_detector.classifier import load_classifier
from digit_detector.labels import MFCC
from ml_training.predict.tables import Recording


@pytest.fixture(scope="session")
def make_clips():
    """Write recordings of 50 ms of noise to these places in a folder; without a library, which is faster."""
    generator = np.random.default_rng(0)
    head = struct.pack("<4sI8sIHHIIHH4sI", b"RIFF", 836, b"WAVEfmt ", 16, 1, 1, 8000, 16000, 2, 16, b"data", 800)

    def make(folder, names):
        for name in names:
            path = os.path.join(folder, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(head + generator.integers(-9000, 9000, 400, dtype="<i2").tobytes())

    return make


@pytest.fixture(scope="session")
def read_rows():
    """The rows of a table, as users would read them."""

    def read(path):
        if ".parquet" in path.name:
            from pyarrow import parquet

            rows: list[dict[str, str]] = parquet.read_table(path).to_pylist()
            return rows
        with path.open(newline="", encoding="utf-8") as file:
            return [json.loads(line) for line in file] if ".jsonl" in path.name else list(csv.DictReader(file))

    return read


@pytest.fixture(scope="session")
def classifier(tiny_models):
    return load_classifier(tiny_models, MFCC)


@pytest.fixture(scope="session")
def answered():
    """A prediction that depends on the name alone."""

    def predict(name):
        shares = np.random.default_rng(len(name)).dirichlet(np.ones(10)).astype(np.float32)
        return Recording(name, None, shares, float(shares[0]))

    return predict
