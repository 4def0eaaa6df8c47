"""Settings: JSON files, flags, recipes, earlier names, wrong values, the configurations of the package."""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import typing
from pathlib import Path
from typing import Any

import pytest

from digit_detector.cli.parser import OneLineParser
from digit_detector.errors import ConfigError
from digit_detector.labels import MEL_CNN, MFCC
from ml_training.config import (
    NAMED,
    RENAMED_SETTINGS,
    AugmentationConfig,
    Recipe,
    TrainConfig,
    find_config,
    load_config,
    named_configs,
    note_renamed,
    rename_settings,
    to_dict,
)
from ml_training.flags import add_train_flags, train_config_from

ROOT = Path(__file__).resolve().parents[1]
UNUSUAL = TrainConfig(
    pipeline="raw_cnn", dataset="folder", data_dir="somewhere", data_url="file.zip", extra_digits_dir="more",
    split="speaker", held_out_speaker="theo", models_dir="m", log_dir="l", epochs=7, batch_size=3, learning_rate=0.5,
    weight_decay=0.25, optimizer="adam", scheduler="step", label_smoothing=0.2, clip_norm=0.0, ema_decay=0.5,
    patience=1, validation_ratio=0.2, device="cpu", precision="fp32", threads=2, seed=11, keep_checkpoints="all",
    resume="4", synthetic_ratio=0.25, synthetic_voices=40, negative_ratio=0.5, non_digit_dir="words",
    teacher_dir="teachers", distillation_weight=0.25, promote=False, width=0.5, compile=True, cache=False,
    clip_storage="mapped", mlflow="http://localhost:5000",
    augmentation=AugmentationConfig(
        enabled=False, edge_crop_probability=0.1, edge_crop=0.2,
        speed=(0.9, 1.1), gain_db=(-3, 3), random_eq_db=1.0, noise_probability=0.1, snr_db=(1.0, 2.0),
        time_shift=0.5, vtlp=(0.9, 1.0), spec_augment=False, formant_shift_probability=0.1, formant_shift=(0.9, 1.1),
        pitch_probability=0.2, pitch=(0.9, 1.1), tilt_db=1.0, band_probability=0.3,
        band_low_hz=(10.0, 20.0), band_high_hz=(3000.0, 3500.0),
        procedural_ratio=0.25, noise_dir="noises", recorded_ratio=0.25, reverb_probability=0.4, rt60=(0.2, 0.3),
        drr_db=(1.0, 2.0),
        telephone_probability=0.5, quantize_probability=0.6, peak_dbfs=(-12.0, -6.0), mixup_probability=0.7,
        mixup_alpha=0.2, cutmix_probability=0.8,
    ),
)  # fmt: skip


def parse(*words: str) -> TrainConfig:
    parser = OneLineParser(prog="train")
    add_train_flags(parser)
    return train_config_from(parser.parse_args(words))


def write(path: Path, values: Any) -> Path:
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def test_unusual_differs_from_the_defaults_everywhere() -> None:
    # The round-trip tests below prove nothing about a setting that UNUSUAL leaves at its default.
    for usual, unusual in ((TrainConfig(), UNUSUAL), (AugmentationConfig(), UNUSUAL.augmentation)):
        same = [f.name for f in dataclasses.fields(usual) if getattr(usual, f.name) == getattr(unusual, f.name)]
        assert set(same) <= {"fold"}, "which a split by speaker cannot have"


# --- JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [TrainConfig(), UNUSUAL], ids=["defaults", "unusual"])
def test_json_round_trip(config: TrainConfig, tmp_path: Path) -> None:
    path = write(tmp_path / "config.json", to_dict(config))
    assert TrainConfig(**load_config(path)) == config
    assert parse("--config", str(path)) == config


def test_every_fault_of_a_file_is_listed(tmp_path: Path) -> None:
    values = {
        "epoch": 3, "zzz": 1, "epochs": "ten", "batch_size": 0, "device": "gpu", "data_dir": 7, "learning-rate": 1,
        "model_dir": 1, "augmentation": {"sped": [1, 1], "enabled": 1, "snr_db": [5], "time_shift": 3},
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path / "bad.json", values))
    assert sorted(caught.value.faults) == [
        "augmentation.enabled: expected true or false, got 1",
        "augmentation.snr_db: expected two numbers, got [5]",
        "augmentation.time_shift: expected a number from 0 to 1, got 3.0",
        "batch_size: expected a number from 2 to 65536, got 0",
        "data_dir: expected text in quotes, got 7",
        "device: expected one of auto, cpu, cuda, got 'gpu'",
        "epochs: expected a whole number, got 'ten'",
        "unknown setting 'augmentation.sped', did you mean augmentation.speed?",
        "unknown setting 'epoch', did you mean epochs?",
        "unknown setting 'learning-rate', did you mean learning_rate?",
        "unknown setting 'model_dir', did you mean models_dir?",
        "unknown setting 'zzz'",
    ]
    assert str(caught.value).startswith(f"12 faults in {tmp_path / 'bad.json'}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"{", "not JSON: "), (b"[1]", "expected a JSON object of settings, got list"), (b"", "not JSON: "),
        (b'{"learning_rate": NaN}', "learning_rate: expected a number, got nan"),
        (b'{"learning_rate": 1' + 400 * b"0" + b"}", "learning_rate: expected a number from 1e-08 to 10"),
        (b'{"epochs": 1' + 5000 * b"0" + b"}", "not JSON: "), (100_000 * b"[", "not JSON: "),
        (b'{"augmentation": 3}', "augmentation: expected an object, got 3"), (b"\xff\xfe\x00{", "cannot read it"),
        (b'{"augmentation": {"speed": ["a", "b"]}}', "augmentation.speed: expected two numbers"),
        (b'{"seed": null}', "seed: expected a whole number, got None"), (None, "cannot read it"),
    ],
    ids=["cut", "list", "empty", "nan", "huge", "endless", "deep", "no object", "binary", "words", "null", "folder"],
)  # fmt: skip
def test_files_that_cannot_be_used(content: bytes | None, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    (found,) = caught.value.faults
    assert found.startswith(fault)
    assert str(path) in str(caught.value)


def test_null_leaves_a_setting_open_and_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "config.json", {"epochs": None, "augmentation": None})
    assert TrainConfig(**load_config(path)) == TrainConfig()
    path.write_text('{"epochs": 3}', encoding="utf-8-sig")
    assert load_config(path) == {"epochs": 3}


# --- flags ---------------------------------------------------------------------------------------


def test_there_is_a_flag_for_every_setting() -> None:
    words: list[str] = []
    assert UNUSUAL.augmentation is not None
    for config, prefix in ((UNUSUAL, ""), (UNUSUAL.augmentation, "augmentation.")):
        for f in dataclasses.fields(typing.cast(Any, config)):
            value = getattr(config, f.name)
            if isinstance(value, bool):
                words.append(f"--{prefix}{f.name}" if value else f"--no_{prefix}{f.name}")
            elif isinstance(value, tuple):
                words += [f"--{prefix}{f.name}", *(str(v) for v in value)]
            elif value is not None and not dataclasses.is_dataclass(value):
                words += [f"--{prefix}{f.name}", str(value)]
    assert parse(*words) == UNUSUAL


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ([], {}),
        (["--batch-size", "32", "--data-dir", "a-b_c"], {"batch_size": 32, "data_dir": "a-b_c"}),
        (["--batch_size=32", "--data-dir=a-b_c"], {"batch_size": 32, "data_dir": "a-b_c"}),
        *(([flag, "there"], {"models_dir": "there"})
          for flag in ("--model_dir", "--models_dir", "--model-dir", "--models-dir")),
        (["--resume"], {"resume": "latest"}), (["--resume", "latest"], {"resume": "latest"}),
        (["--resume", "12"], {"resume": "12"}), (["--resume=12"], {"resume": "12"}),
        (["--resume", "--seed", "3"], {"resume": "latest", "seed": 3}),
        (["--augmentation.gain_db", "-30", "-1.5"], {"augmentation": {"gain_db": (-30.0, -1.5)}}),
    ],
    ids=str,
)  # fmt: skip
def test_flags(words: list[str], settings: dict[str, Any]) -> None:
    assert parse(*words) == TrainConfig(**settings)


def test_flags_win_over_the_file_and_complete_it(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.json", {"epochs": 5, "seed": 9, "augmentation": {"speed": [0.9, 1.1], "time_shift": 0.5}}
    )
    config = parse(
        "--config", str(path), "--epochs", "7", "--augmentation.time_shift", "0.25", "--no-augmentation.spec-augment"
    )
    expected = {"speed": (0.9, 1.1), "time_shift": 0.25, "spec_augment": False}
    assert config == TrainConfig(epochs=7, seed=9, augmentation=expected)
    path = write(tmp_path / "c.json", {"split": "speaker"})
    assert parse("--config", str(path), "--held-out-speaker", "theo").held_out_speaker == "theo"


def test_all_faults_of_file_and_flags_come_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.json", {"epoch": 3, "seed": "one", "split": "speaker", "batch_size": 1})
    with pytest.raises(ConfigError) as caught:
        parse("--config", str(path), "--precision", "fp16", "--device", "cpu", "--clip_norm", "-1", "--epochs", "0")
    names = [
        "batch_size",
        "clip_norm",
        "epochs",
        "precision fp16",
        "seed",
        "split 'speaker'",
        "unknown setting 'epoch'",
    ]
    assert all(fault.startswith(name) for fault, name in zip(sorted(caught.value.faults), names, strict=True))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--batchsize", "3"], "unknown argument --batchsize, did you mean --batch_size?"),
        (["--epoch=3"], "unknown argument --epoch=3, did you mean --epochs?"), (["mfcc"], "unknown argument mfcc"),
        (["--device", "tree"], "invalid choice: 'tree'"), (["--epochs", "many"], "invalid int value: 'many'"),
        (["--epochs"], "expected one argument"), (["--augmentation.speed", "1"], "expected 2 arguments"),
    ],
)  # fmt: skip
def test_wrong_flags_are_one_line_and_exit_code_2(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*words)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("train: ")
    assert expected in error
    assert error.endswith("(see train --help)\n")
    assert error.count("\n") == 1


@pytest.mark.parametrize(("old", "new"), RENAMED_SETTINGS.items())
def test_earlier_names_of_settings_are_read_with_a_note(
    old: str, new: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note_renamed.cache_clear()
    prefix, _, name = new.rpartition(".")
    written = to_dict(UNUSUAL)
    value = (written["augmentation"] if prefix else written)[name]
    earlier, expected = ({key.rpartition(".")[2]: value} for key in (old, new))
    if prefix:
        earlier, expected = {"augmentation": earlier}, {"augmentation": expected}
    assert rename_settings(earlier) == expected
    assert parse("--config", str(write(tmp_path / "old.json", earlier))) == TrainConfig(**expected)
    words = map(str, value) if isinstance(value, tuple) else [str(value)]
    assert parse(f"--{old}", *words) == TrainConfig(**expected)
    notes = capsys.readouterr().err
    assert f"note: {old} is now named {new}" in notes
    assert f"note: --{old} is now named --{new}" in notes


# --- recipes -------------------------------------------------------------------------------------


def test_resolved_fills_only_what_was_left_open() -> None:
    recipe = Recipe(60, 64, 0.003, 0.01)
    resolved = TrainConfig(epochs=5, weight_decay=0.0).resolve(MFCC, recipe)
    assert (resolved.epochs, resolved.batch_size, resolved.learning_rate, resolved.weight_decay) == (5, 64, 0.003, 0.0)
    assert resolved.pipeline == MFCC
    assert resolved.augmentation == recipe.augmentation
    assert resolved.resolve(MFCC, Recipe(1, 1, 1.0, 1.0)) == resolved


OWN = Recipe(60, 64, 0.003, 0.01, AugmentationConfig(speed=(0.7, 1.5), noise_probability=0.9, tilt_db=2.0))


def test_settings_of_augmentation_start_from_the_recipe(tmp_path: Path) -> None:
    expected = dataclasses.replace(OWN.augmentation, time_shift=0.5)
    path = write(tmp_path / "c.json", {"augmentation": {"time_shift": 0.5}})
    for config in (
        parse("--augmentation.time_shift", "0.5"), parse("--config", str(path)),
        TrainConfig(augmentation={"time_shift": 0.5}),
    ):  # fmt: skip
        assert config.resolve(MFCC, OWN).augmentation == expected
        assert config.resolve(MFCC, Recipe(1, 2, 1.0, 1.0)).augmentation == AugmentationConfig(time_shift=0.5)
    both = parse("--config", str(path), "--augmentation.tilt_db", "1", "--no_augmentation.enabled")
    assert both.resolve(MFCC, OWN).augmentation == dataclasses.replace(expected, tilt_db=1.0, enabled=False)
    assert TrainConfig().resolve(MFCC, OWN).augmentation == OWN.augmentation
    assert TrainConfig(augmentation={}).resolve(MFCC, OWN).augmentation == OWN.augmentation
    assert TrainConfig(augmentation=AugmentationConfig()).resolve(MFCC, OWN).augmentation == AugmentationConfig()
    with pytest.raises(TypeError, match="resolve"):
        _ = TrainConfig(augmentation={"time_shift": 0.5}).full_augmentation
    assert TrainConfig().resolve(MFCC, OWN).full_augmentation == OWN.augmentation


# --- values and named configurations -------------------------------------------------------------


def faults_of(**settings: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**settings)
    return caught.value.faults


@pytest.mark.parametrize(
    "field", [f for f in dataclasses.fields(TrainConfig) if "high" in f.metadata], ids=lambda field: field.name
)
def test_ranges_are_inclusive(field: dataclasses.Field[Any]) -> None:
    name, low, high = field.name, field.metadata["low"], field.metadata["high"]
    if high == float("inf"):
        return
    for inside in (low, high):
        assert getattr(TrainConfig(**{name: inside}), name) == inside
    step = 1 if isinstance(low, int) and isinstance(high, int) else 1e-3
    for outside in (low - step, high + step):
        (fault,) = faults_of(**{name: outside})
        assert fault.startswith(f"{name}: expected a number from ")
        assert fault.endswith(f"got {outside}")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        *(({"learning_rate": value}, "expected a number, got") for value in (float("nan"), float("inf"))),
        *(({"keep_checkpoints": value}, "expected 'all' or a whole number above 0")
          for value in ("0", "00", "-1", "1.5", "", "²", "٣", "9" * 5000, "latest")),
        *(({"resume": value}, "expected 'latest' or a whole number above 0")
          for value in ("0", "first", "²", "-3", "all")),
        ({"epochs": 2.0}, "a whole number, got 2.0"), ({"epochs": True}, "a whole number, got True"),
        ({"learning_rate": "0.1"}, "a number, got '0.1'"), ({"models_dir": 3}, "text in quotes, got 3"),
        ({"models_dir": None}, "text in quotes, got None"), ({"augmentation": 3}, "an object, got 3"),
        ({"split": "speaker"}, "needs held_out_speaker"), ({"split": "fold", "fold": "4/3"}, "got '4/3'"),
        ({"dataset": "synthetic", "synthetic_ratio": 0.5}, "synthetic_ratio is for recordings"),
        ({"augmentation": {"sped": 1}}, "unknown setting 'augmentation.sped', did you mean augmentation.speed?"),
        ({"augmentation": {"speed": [2, 1]}}, "augmentation.speed: expected the smaller number first, got 2 1"),
        ({"mlflow": "http://user:secret@host"}, "MLFLOW_TRACKING_PASSWORD"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_values(settings: dict[str, Any], expected: str) -> None:
    (fault,) = faults_of(**settings)
    assert expected in fault


# --- named configurations ------------------------------------------------------------------------


def test_each_named_configuration_loads_by_name_and_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(named_configs()) == ["best", "default", "fast", "gpu", "tiny"]
    for folder in (ROOT, tmp_path):
        monkeypatch.chdir(folder)
        for name in named_configs():
            expected = TrainConfig(**json.loads((NAMED / f"{name}.json").read_text(encoding="utf-8")))
            for path in (name, f"configs/{name}.json", f"{name}.json"):
                assert TrainConfig(**load_config(path)) == expected
    assert TrainConfig(**load_config("default")) == TrainConfig()
    assert 1 <= load_config("fast")["epochs"] <= 30
    with pytest.raises(ConfigError, match=r"by name there are best, default, fast, gpu, tiny"):
        load_config("fats")


def test_a_file_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fast.json").write_text('{"epochs": 7}')
    assert load_config("fast.json")["epochs"] == 7 != load_config("fast")["epochs"]
    (tmp_path / "fast").mkdir()
    assert find_config("fast") == NAMED / "fast.json", "a folder is no file of settings"
    assert find_config("other/fast.json") == Path("other/fast.json")


def test_best_is_how_the_shipped_model_was_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIGIT_CORPORA_DIR", os.sep)
    ship = runpy.run_path(str(ROOT / "benchmarks" / "ship.py"))
    settings: dict[str, Any] = ship["settings"](MEL_CNN, ship["SEED"], ship["EPOCHS"][MEL_CNN], **ship["OWN"][MEL_CNN])
    for folder in ship["CORPORA"]:  # these are the user's to name
        (settings["augmentation"] if folder == "noise_dir" else settings).pop(folder)
    assert load_config("best") == settings
