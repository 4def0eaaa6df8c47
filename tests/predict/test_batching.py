"""Decoding ahead of the model, in order and bounded, and batches that fit into memory."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from digit_detector.audio import load_audio
from digit_detector.errors import ModelError, ModelMemoryError
from ml_training.predict import batching
from ml_training.predict.batching import BATCH_SIZE, decode_ahead, predict_recordings
from ml_training.predict.tables import Recording


def test_files_come_in_order_and_errors_in_their_place(tmp_path, make_clips, monkeypatch):
    names = [str(tmp_path / f"{n:03}.wav") for n in range(70)]
    make_clips(tmp_path, names)
    Path(names[7]).write_bytes(b"")
    Path(names[8]).unlink()
    tries: list[str] = []

    def load(name):
        time.sleep(0.02 if name.endswith("00.wav") else 0)
        if "009" in name:
            raise RuntimeError("a fault of a library")
        tries.append(name)
        if "010" in name or ("011" in name and tries.count(name) == 1):
            raise MemoryError
        return load_audio(name)

    monkeypatch.setattr(batching, "load_audio", load)
    listed = [*map(Recording, names), Recording("locked", error="cannot read"), Recording("done.wav", row=b"row")]
    for decoders in (1, 3):
        decoded = list(decode_ahead(iter(listed), decoders))
        assert [one.name for one in decoded] == [one.name for one in listed]
        errors = {Path(one.name).stem: one.error or "" for one in decoded if one.clip is None and one.row is None}
        assert list(errors) == ["007", "008", "009", "010", "locked"]
        assert "is empty (0 bytes)" in errors["007"]
        assert "No such file" in errors["008"]
        assert "(RuntimeError: a fault of a library): please report it" in errors["009"]
        assert "takes more memory to decode than there is" in errors["010"]
        np.testing.assert_array_equal(decoded[11].clip, load_audio(names[11]))
        assert decoded[-1] == listed[-1]


class Short:
    """A model that returns samples of its input, of at most so many clips at once."""

    def __init__(self, most):
        self.most = most
        self.sizes: list[int] = []

    def predict_proba(self, waveforms):
        self.sizes.append(len(waveforms))
        if len(waveforms) > self.most:
            raise ModelMemoryError("Failed to allocate memory") if self.most else ModelError("is damaged")
        return np.repeat(waveforms[:, :1], 10, axis=1), waveforms[:, 1]


@pytest.mark.parametrize(
    ("size", "most", "lasting"),
    [(None, 999, BATCH_SIZE), (None, 20, 16), (None, 3, 2), (100, 30, 25), (1, 1, 1), (None, 1, 1), (8, 0, 8)],
)
def test_batches_are_halved_where_memory_is_short(size, most, lasting):
    clips = [Recording(str(n), np.full(8000, n, np.float32)) for n in range(200)]
    notes: list[str] = []
    model: Any = Short(most)
    recordings = iter([*clips, Recording("done", row=b"row")])
    batches = predict_recordings(recordings, notes.append, model=model, batch_size=size, decoders=1)
    if most == 0:
        with pytest.raises(ModelError, match="is damaged"):
            next(batches)
        return
    predicted = [one for batch in batches for one in batch]
    assert predicted.pop().row == b"row"
    assert [one.digit_score for one in predicted] == list(range(200))
    assert max(model.sizes[-5:]) == lasting
    assert len([asked for asked in model.sizes if asked > most]) == len(notes) <= 7
    assert not notes or notes[-1].endswith(f" clips at once: going on with {lasting}")
