"""Checkpoint files: written whole, read without unpickling, kept apart from other runs."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch

from digit_detector.errors import CheckpointError
from digit_detector.files import write_durably
from ml_training.config import TrainConfig
from ml_training.data.augmentation.noise import load_backgrounds
from ml_training.training.checkpoint import BEST, FORMAT, INTERRUPTED, load_checkpoint
from ml_training.training.distillation import teachers_hash

STATE = {"model": {"weight": torch.arange(1000.0)}}


def weight(path: Path) -> torch.Tensor:
    tensor: torch.Tensor = load_checkpoint(path)["state"]["model"]["weight"]
    return tensor


def test_a_checkpoint_comes_back_and_describes_itself(tiny: ModuleType, tmp_path: Path) -> None:
    config = tiny.config(seed=7)
    path = tiny.store(tmp_path / "new" / "folder", config).save_epoch(3, STATE)
    assert path.name == "checkpoint_epoch_003.pt"
    content = load_checkpoint(path)
    assert torch.equal(content["state"]["model"]["weight"], STATE["model"]["weight"])
    assert {k: content[k] for k in ("format", "version", "pipeline", "data_hash", "epoch", "kind", "synthetic")} == {
        "format": FORMAT, "version": 1, "pipeline": "mfcc", "data_hash": tiny.DATA_HASH, "epoch": 3, "kind": "epoch",
        "synthetic": False,
    }  # fmt: skip
    assert content["config"]["seed"] == 7
    assert content["package_version"]


def test_best_model_tells_its_epoch_and_figures(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.store(tmp_path, tiny.config()).save_best(5, {"weight": torch.ones(3)}, {"loss": 0.5, "accuracy": 0.9})
    content = load_checkpoint(tmp_path / BEST)
    assert (content["epoch"], content["validation"]) == (5, {"loss": 0.5, "accuracy": 0.9})
    assert torch.equal(content["weights"]["weight"], torch.ones(3))


@pytest.mark.parametrize(
    ("keep", "left"), [("1", [1002]), ("3", [1000, 1001, 1002]), ("all", [998, 999, 1000, 1001, 1002])]
)
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
    with pytest.raises(CheckpointError, match=r"checkpoint_epoch_001\.pt is damaged or no checkpoint"):
        load_checkpoint(path)


class Exploit:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pwned",)


def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": FORMAT, "state": Exploit()}, "evil.pt")
    with pytest.raises(CheckpointError, match="more than plain tensors"):
        load_checkpoint(Path("evil.pt"))
    Path("pickle.pt").write_bytes(pickle.dumps(Exploit()))
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        load_checkpoint(Path("pickle.pt"))
    assert not Path("pwned").exists()


def test_foreign_missing_and_newer_files_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "foreign.pt")
    torch.save({"format": FORMAT, "version": 99}, tmp_path / "newer.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        load_checkpoint(tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match="has format 99, this version reads 1"):
        load_checkpoint(tmp_path / "newer.pt")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "missing.pt")


def test_resume_takes_the_newest_of_epoch_and_interrupted(tiny: ModuleType, tmp_path: Path) -> None:
    store = tiny.store(tmp_path, tiny.config())
    assert store.resume("latest") is None
    store.save_epoch(1, STATE)
    store.save_epoch(2, STATE)
    assert store.resume("latest")["epoch"] == 2
    store.save_interrupted(2, 5, STATE)
    assert (store.resume("latest")["epoch"], store.resume("latest")["step"]) == (2, 5)
    stale = (tmp_path / INTERRUPTED).read_bytes()
    store.save_epoch(3, STATE)
    assert not (tmp_path / INTERRUPTED).exists()
    (tmp_path / INTERRUPTED).write_bytes(stale)
    assert (store.resume("latest")["epoch"], store.resume("latest")["step"]) == (3, 0)


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tiny: ModuleType, tmp_path: Path) -> None:
    said: list[str] = []
    store = tiny.store(tmp_path, tiny.config(), report=said.append)
    for epoch in (1, 2, 3):
        store.save_epoch(epoch, STATE)
    store.save_interrupted(3, 1, STATE)
    for name in (INTERRUPTED, "checkpoint_epoch_003.pt"):
        (tmp_path / name).write_bytes(b"PK damaged")
    assert store.resume("latest")["epoch"] == 2
    assert [INTERRUPTED in line or "epoch_003" in line for line in said] == [True, True]
    for epoch in (1, 2):
        (tmp_path / f"checkpoint_epoch_{epoch:03d}.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read \(4 damaged\)"):
        store.resume("latest")


def test_a_named_epoch_that_is_not_there_lists_those_that_are(tiny: ModuleType, tmp_path: Path) -> None:
    store = tiny.store(tmp_path, tiny.config())
    for epoch in (4, 5):
        store.save_epoch(epoch, STATE)
    with pytest.raises(CheckpointError, match=r"no checkpoint of epoch 2 .*available: 4, 5"):
        store.resume("2")
    assert store.resume("04")["epoch"] == 4
    assert list(store.epochs()) == [4]


def test_other_settings_and_data_are_refused_by_name(tiny: ModuleType, tmp_path: Path) -> None:
    config = tiny.config()
    tiny.store(tmp_path, config).save_epoch(1, STATE)
    assert config.augmentation
    noisy = replace(config.augmentation, noise_probability=0.5)
    other = replace(config, learning_rate=0.5, seed=1, negative_share=0.5, augmentation=noisy)
    store = tiny.store(tmp_path, other)
    store.identity = replace(store.identity, data_hash="f" * 64)
    with pytest.raises(CheckpointError) as raised:
        store.resume("latest")
    for part in (
        "learning_rate was 0.01, is 0.5", "seed was 0, is 1", "negative_share was 0.0, is 0.5",
        "augmentation.noise_probability was 0.8, is 0.5",
        "hash of data was 0123456789ab, is ffffffffffff", "without --resume",
    ):  # fmt: skip
        assert part in str(raised.value)


def test_other_noise_in_the_same_folder_is_refused(tiny: ModuleType, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "noise.wav", np.sin(np.arange(9000.0)), 8000)
    config = tiny.config(augmentation={"noise_dir": str(tmp_path)})
    tiny.store(tmp_path, config).save_epoch(1, STATE)
    assert tiny.store(tmp_path, config).resume("latest") is not None
    soundfile.write(tmp_path / "more.wav", np.cos(np.arange(9000.0)), 8000)
    load_backgrounds.cache_clear()  # another process
    with pytest.raises(CheckpointError, match=r"hash of noise_dir was [0-9a-f]{12}, is [0-9a-f]{12}"):
        tiny.store(tmp_path, config).resume("latest")


def test_other_teachers_are_refused_wherever_they_lie(tiny: ModuleType, tmp_path: Path) -> None:
    def best(folder: str, value: float) -> str:
        tiny.store(tmp_path / folder, tiny.config()).save_best(1, {"weight": torch.full((3,), value)}, {})
        return str(tmp_path / folder)

    def resume(then: TrainConfig, now: TrainConfig) -> object:
        teachers_hash.cache_clear()  # another process
        tiny.store(tmp_path / "student", then).save_epoch(1, STATE)
        teachers_hash.cache_clear()
        return tiny.store(tmp_path / "student", now).resume("latest")

    one, same, other = best("one", 1.0), best("same", 1.0), best("other", 2.0)
    alone, taught = tiny.config(), tiny.config(teacher_dir=one)
    assert resume(taught, taught)
    assert resume(taught, replace(taught, teacher_dir=same)), "another place, the same weights"
    hashed = "[0-9a-f]{12}"
    for then, now, message in (
        (taught, replace(taught, teacher_dir=other), f"hash of teacher_dir was {hashed}, is {hashed}"),
        (alone, taught, f"hash of teacher_dir was none, is {hashed}"),
        (taught, alone, f"hash of teacher_dir was {hashed}, is none"),
        (taught, replace(taught, teacher_share=0.5), r"teacher_share was 0\.7, is 0\.5"),
    ):
        with pytest.raises(CheckpointError, match=f"belong to another run: {message}. Use the same"):
            resume(then, now)
    tiny.store(tmp_path / "student", taught).save_epoch(1, STATE)
    best("one/more", 1.0)
    teachers_hash.cache_clear()
    with pytest.raises(CheckpointError, match=f"hash of teacher_dir was {hashed}, is {hashed}"):
        tiny.store(tmp_path / "student", taught).resume("latest")


def test_what_changes_no_weight_may_differ(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.store(tmp_path, tiny.config()).save_epoch(1, STATE)
    other = tiny.config(
        models_dir="elsewhere", log_dir="elsewhere", threads=3, keep_checkpoints="all", resume="latest",
        dataset="folder", data_dir="elsewhere", device="auto", words_dir="elsewhere", extra_dir="elsewhere",
    )  # fmt: skip
    assert tiny.store(tmp_path, other).resume("latest") is not None


def test_only_the_plateau_schedule_can_be_made_longer(tiny: ModuleType, tmp_path: Path) -> None:
    for scheduler in ("cosine", "plateau"):
        folder = tmp_path / scheduler
        tiny.store(folder, tiny.config(scheduler=scheduler)).save_epoch(1, STATE)
    longer = tiny.store(tmp_path / "plateau", tiny.config(scheduler="plateau", epochs=50))
    assert longer.resume("latest") is not None
    with pytest.raises(CheckpointError, match="epochs was 4, is 50"):
        tiny.store(tmp_path / "cosine", tiny.config(epochs=50)).resume("latest")


def test_starting_anew_drops_old_checkpoints_but_not_the_model(tiny: ModuleType, tmp_path: Path) -> None:
    said: list[str] = []
    store = tiny.store(tmp_path, tiny.config(), report=said.append)
    for epoch in (1, 2):
        store.save_epoch(epoch, STATE)
    store.save_best(1, {}, {})
    store.save_interrupted(2, 1, STATE)
    (tmp_path / "model.onnx").write_bytes(b"")
    store.start_anew()
    assert sorted(path.name for path in tmp_path.iterdir()) == [BEST, "model.onnx"]
    assert len(said) == 1
    assert "removed 3 checkpoints of an earlier run" in said[0]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_durably(path, b"old")
    target = tmp_path / "folder"
    target.mkdir()
    (target / "content").write_bytes(b"")
    with pytest.raises(OSError, match="irectory"):
        write_durably(target, b"new")  # a folder cannot be replaced by a file
    assert path.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_settings_unknown_to_an_older_checkpoint_are_named(tiny: ModuleType, tmp_path: Path) -> None:
    store = tiny.store(tmp_path, tiny.config())
    path = store.save_epoch(1, STATE)
    content = load_checkpoint(path)
    del content["config"]["ema_decay"]
    content["config"]["augmentation"] = None
    torch.save(content, path)
    with pytest.raises(CheckpointError) as raised:
        store.resume("latest")
    assert "ema_decay was None, is 0.99" in str(raised.value)
    assert "augmentation.shift was None, is 0.0" in str(raised.value)


def test_weights_alone_are_nothing_to_go_on_from(tiny: ModuleType, tmp_path: Path) -> None:
    store = tiny.store(tmp_path, tiny.config())
    store.save_best(2, {"weight": torch.ones(3)}, {"loss": 0.5, "accuracy": 0.9})
    (tmp_path / BEST).rename(tmp_path / "checkpoint_epoch_002.pt")
    with pytest.raises(CheckpointError, match="no training state"):
        store.resume("2")
    with pytest.raises(CheckpointError, match="can be read"):
        store.resume("latest")


def test_an_old_checkpoint_that_cannot_be_removed_is_a_clear_error(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tiny.store(tmp_path, tiny.config())
    store.save_epoch(1, STATE)

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(CheckpointError, match="Read-only file system"):
        store.start_anew()


def test_two_processes_do_not_write_into_the_same_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside: list[str] = []
    replace_file = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (beside.append(Path(a).name), replace_file(a, b)))
    for process in (1, 2):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        write_durably(tmp_path / "x.pt", b"content")
    assert len(set(beside)) == 2
