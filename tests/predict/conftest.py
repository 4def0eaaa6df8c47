"""Recordings that are quickly made, and the table that a folder of them becomes."""

from __future__ import annotations

import csv
import json
import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from digit_detector.classifier import DigitClassifier, load_classifier
from digit_detector.labels import MFCC
from ml_training.predict.tables import Row


def wav(samples: np.ndarray, rate: int = 8000) -> bytes:
    """A WAV of int16 samples (T,), made without a library: faster than any."""
    size = 2 * len(samples)
    head = struct.pack(
        "<4sI8sIHHIIHH4sI", b"RIFF", 36 + size, b"WAVEfmt ", 16, 1, 1, rate, 2 * rate, 2, 16, b"data", size
    )
    return head + samples.astype("<i2").tobytes()


@pytest.fixture(scope="session")
def make_clips() -> Callable[[Path, Iterable[str]], None]:
    """Write recordings of 50 ms, each another noise, to these places in a folder."""
    generator = np.random.default_rng(0)

    def make(folder: Path, names: Iterable[str]) -> None:
        made = set()
        for name in names:
            path = os.path.join(folder, name)
            if (parent := os.path.dirname(path)) not in made:
                os.makedirs(parent, exist_ok=True)
                made.add(parent)
            with open(path, "wb") as file:
                file.write(wav(generator.integers(-9000, 9000, 400, dtype=np.int16)))

    return make


@pytest.fixture(scope="session")
def read_rows() -> Callable[[Path], list[dict[str, str]]]:
    """The rows of a CSV or JSON Lines, as anybody would read them."""

    def read(path: Path) -> list[dict[str, str]]:
        with path.open(newline="", encoding="utf-8") as file:
            if ".jsonl" in path.name:
                return [json.loads(line) for line in file]
            return list(csv.DictReader(file, strict=True))

    return read


@pytest.fixture(scope="session")
def classifier(tiny_models: Path) -> DigitClassifier:
    return load_classifier(tiny_models, MFCC)


@pytest.fixture(scope="session")
def answered() -> Callable[[str], Row]:
    """A row with an answer, made of a name."""

    def row(name: str) -> Row:
        shares = np.random.default_rng(len(name)).dirichlet(np.ones(10)).astype(np.float32)
        return Row(name, shares, float(shares[0]))

    return row
