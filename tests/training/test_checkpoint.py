"""Checkpoint files: written whole, read without unpickling, kept apart from other runs."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from digit_detector.errors import CheckpointError
from ml_training.data.augmentation.noise import load_noise_bank
from ml_training.training.checkpoint import BEST, FORMAT, INTERRUPTED, load_checkpoint
from ml_training.training.distillation import teachers_hash

STATE = {"model": {"weight": torch.arange(1000.0)}}


def test_a_checkpoint_comes_back_and_describes_itself(tiny: ModuleType, tmp_path: Path) -> None:
    store = tiny.store(tmp_path / "new" / "folder", tiny.config(seed=7))
    path = store.save_epoch(3, STATE)
    assert path.name == "checkpoint_epoch_003.pt"
    content = load_checkpoint(path)
    assert torch.equal(content["state"]["model"]["weight"], STATE["model"]["weight"])
    expected = {"format": FORMAT, "version": 1, "pipeline": "mfcc", "epoch": 3, "kind": "epoch", "synthetic": False}
    assert {**content, **expected, "data_hash": tiny.DATA_HASH}.items() >= expected.items() <= content.items()
    assert content["config"]["seed"] == 7
    assert content["package_version"]
    best = load_checkpoint(store.save_best(5, {"weight": torch.ones(3)}, {"loss": 0.5, "accuracy": 0.9}))
    assert (best["epoch"], best["validation"]) == (5, {"loss": 0.5, "accuracy": 0.9})
    assert torch.equal(best["weights"]["weight"], torch.ones(3))


@pytest.mark.parametrize(("keep", "left"), [("1", [1002]), ("3", [1000, 1001, 1002]), ("all", [*range(998, 1003)])])
def test_keep_checkpoints_keeps_the_newest_by_number(
    tiny: ModuleType, tmp_path: Path, keep: str, left: list[int]
) -> None:
    store = tiny.store(tmp_path, tiny.config(keep_checkpoints=keep))
    for epoch in range(998, 1003):
        store.save_epoch(epoch, STATE)
    assert list(store.epochs()) == left


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "text"])
def test_damage_is_noticed(tiny: ModuleType, tmp_path: Path, damage: str) -> None:
    path = tiny.store(tmp_path, tiny.config()).save_epoch(1, STATE)
    content = bytearray(path.read_bytes())
    content[content.index(STATE["model"]["weight"].numpy().tobytes()) + 100] ^= 1
    damaged = {"cut": content[: len(content) // 2], "bit": content, "empty": b"", "text": b"these are no weights"}
    path.write_bytes(damaged[damage])
    with pytest.raises(CheckpointError, match=r"checkpoint_epoch_001\.pt is damaged"):
        load_checkpoint(path)


class Exploit:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pwned",)


def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": FORMAT, "state": Exploit()}, "evil.pt")
    Path("pickle.pt").write_bytes(pickle.dumps(Exploit()))
    for name in ("evil.pt", "pickle.pt"):
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(Path(name))
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.zeros(3)}, "not a checkpoint of this program"),
        ({"format": FORMAT, "version": 99}, "has format 99, this version reads 1"),
        (None, "no checkpoint at"),
    ],
)
def test_foreign_newer_and_missing_files_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    if content is not None:
        torch.save(content, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "file.pt")


def test_resume_takes_the_newest_of_epoch_and_interrupted(tiny: ModuleType, tmp_path: Path) -> None:
    store = tiny.store(tmp_path, tiny.config())

    def newest() -> tuple[int, int]:
        checkpoint = store.resume("latest")
        return checkpoint["epoch"], checkpoint["step"]

    assert store.resume("latest") is None
    assert not store.resumable
    store.save_epoch(2, STATE)
    assert store.resumable
    assert newest() == (2, 0)
    store.save_interrupted(2, 5, STATE)
    assert newest() == (2, 5)
    stale = (tmp_path / INTERRUPTED).read_bytes()
    store.save_epoch(3, STATE)
    assert not (tmp_path / INTERRUPTED).exists()
    (tmp_path / INTERRUPTED).write_bytes(stale)
    assert newest() == (3, 0)


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tiny: ModuleType, tmp_path: Path) -> None:
    reports: list[str] = []
    store = tiny.store(tmp_path, tiny.config(), report=reports.append)
    for epoch in (1, 2, 3):
        store.save_epoch(epoch, STATE)
    store.save_interrupted(3, 1, STATE)
    for name in (INTERRUPTED, "checkpoint_epoch_003.pt"):
        (tmp_path / name).write_bytes(b"PK damaged")
    assert store.resume("latest")["epoch"] == 2
    assert [INTERRUPTED in line or "epoch_003" in line for line in reports] == [True, True]
    for epoch in (1, 2):
        (tmp_path / f"checkpoint_epoch_{epoch:03d}.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* \(4 damaged\)"):
        store.resume("latest")


def test_a_missing_epoch_lists_the_others_and_a_named_one_removes_the_later_ones(
    tiny: ModuleType, tmp_path: Path
) -> None:
    reports: list[str] = []
    store = tiny.store(tmp_path, tiny.config(), report=reports.append)
    for epoch in (4, 5):
        store.save_epoch(epoch, STATE)
    with pytest.raises(CheckpointError, match=r"no checkpoint of epoch 2 .*4, 5"):
        store.resume("2")
    assert store.resume("04")["epoch"] == 4
    assert list(store.epochs()) == [4]
    assert "removed 1 checkpoint after epoch 4" in reports[0]


def test_other_settings_and_data_are_refused_by_name(tiny: ModuleType, tmp_path: Path) -> None:
    config = tiny.config()
    tiny.store(tmp_path, config).save_epoch(1, STATE)
    augmentation = replace(config.augmentation, noise_probability=0.5)
    other = replace(config, learning_rate=0.5, seed=1, negative_ratio=0.5, augmentation=augmentation)
    store = tiny.store(tmp_path, other)
    store.identity = replace(store.identity, data_hash="f" * 64)
    with pytest.raises(CheckpointError) as raised:
        store.resume("latest")
    for part in (
        "learning_rate was 0.01, is 0.5", "seed was 0, is 1", "negative_ratio was 0.0, is 0.5",
        "augmentation.noise_probability was 0.8, is 0.5", "data was 0123456789ab, is ffffffffffff", "without --resume",
    ):  # fmt: skip
        assert part in str(raised.value)


def test_other_noise_or_teachers_are_refused_in_any_folder(tiny: ModuleType, tmp_path: Path) -> None:
    def resume(then: dict[str, Any], now: dict[str, Any]) -> str:
        """The error of resuming with other settings, empty for none."""
        for cache in (teachers_hash, load_noise_bank):
            cache.cache_clear()  # as in another process
        tiny.store(tmp_path / "run", tiny.config(**then)).save_epoch(1, STATE)
        try:
            tiny.store(tmp_path / "run", tiny.config(**now)).resume("latest")
        except CheckpointError as error:
            return str(error)
        return ""

    for folder, value in {"one": 1.0, "same": 1.0, "other": 2.0}.items():
        tiny.store(tmp_path / folder, tiny.config()).save_best(1, {"weight": torch.full((3,), value)}, {})
        (tmp_path / folder / "noise").mkdir()
        soundfile.write(tmp_path / folder / "noise" / "tone.wav", np.sin(value * np.arange(9000.0)), 8000)
    taught, same, other = ({"teacher_dir": str(tmp_path / name)} for name in ("one", "same", "other"))
    assert resume(taught, same) == ""
    assert "teacher_dir was" in resume(taught, other)
    assert "teacher_dir was none, is" in resume({}, taught)
    assert "distillation_weight was 0.7, is 0.5" in resume(taught, {**taught, "distillation_weight": 0.5})
    first, second = ({"augmentation": {"noise_dir": str(tmp_path / name / "noise")}} for name in ("one", "other"))
    assert resume(first, first) == ""
    assert "hash of noise_dir was" in resume(first, second)


def test_settings_that_change_no_weight_may_differ(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.store(tmp_path, tiny.config()).save_epoch(1, STATE)
    other = tiny.config(
        models_dir="other", log_dir="other", threads=3, keep_checkpoints="all", resume="latest", dataset="folder",
        data_dir="other", device="auto", non_digit_dir="other", extra_digits_dir="other",
    )  # fmt: skip
    assert tiny.store(tmp_path, other).resume("latest") is not None


def test_only_the_plateau_schedule_can_be_made_longer(tiny: ModuleType, tmp_path: Path) -> None:
    for scheduler in ("cosine", "plateau"):
        tiny.store(tmp_path / scheduler, tiny.config(scheduler=scheduler)).save_epoch(1, STATE)
    longer = tiny.store(tmp_path / "plateau", tiny.config(scheduler="plateau", epochs=50))
    assert longer.resume("latest") is not None
    with pytest.raises(CheckpointError, match="epochs was 4, is 50"):
        tiny.store(tmp_path / "cosine", tiny.config(epochs=50)).resume("latest")


def test_a_new_run_removes_old_checkpoints_but_not_the_model(tiny: ModuleType, tmp_path: Path) -> None:
    reports: list[str] = []
    store = tiny.store(tmp_path, tiny.config(), report=reports.append)
    for epoch in (1, 2):
        store.save_epoch(epoch, STATE)
    store.save_best(1, {}, {})
    store.save_interrupted(2, 1, STATE)
    (tmp_path / "model.onnx").write_bytes(b"")
    store.start_anew()
    assert sorted(path.name for path in tmp_path.iterdir()) == [BEST, "model.onnx"]
    (line,) = reports
    assert "removed 3 checkpoints of an earlier run" in line
