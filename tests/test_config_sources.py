"""Where settings come from: JSON files, flags and recipes, and which of them win."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

import pytest

from digit_detector.cli.parser import OneLineParser, underscored
from digit_detector.errors import ConfigError
from digit_detector.labels import MFCC
from ml_training.config import AugmentationConfig, Recipe, TrainConfig, load_config, to_dict
from ml_training.flags import add_train_flags, train_config_from

UNUSUAL = TrainConfig(
    pipeline="raw_cnn", dataset="folder", data_dir="somewhere", data_url="file.zip", extra_dir="more", split="speaker",
    held_out_speaker="theo", models_dir="m", log_dir="l", epochs=7, batch_size=3, learning_rate=0.5, weight_decay=0.25,
    optimizer="adam", scheduler="step", label_smoothing=0.2, clip_norm=0.0, ema_decay=0.5, patience=1,
    validation_share=0.2, device="cpu", precision="fp32", threads=2, seed=11, keep_checkpoints="all", resume="4",
    synthetic_share=0.25, synthetic_voices=40, negative_share=0.5, words_dir="words", teacher_dir="teachers",
    teacher_share=0.25, promote=False, width=0.5, compile=True, cache=False, waveforms="mapped", mlflow="http://localhost:5000",
    augmentation=AugmentationConfig(
        enabled=False, trim_probability=0.1, trim=0.2,
        speed=(0.9, 1.1), level_db=(-3, 3), equaliser_db=1.0, noise_probability=0.1, snr_db=(1.0, 2.0),
        shift=0.5, vtlp=(0.9, 1.0), spec_augment=False, tract_probability=0.1, tract=(0.9, 1.1), pitch_probability=0.2,
        pitch=(0.9, 1.1), tilt_db=1.0, band_probability=0.3, band_low_hz=(10.0, 20.0), band_high_hz=(3000.0, 3500.0),
        generated_share=0.25, noise_dir="noises", recorded_share=0.25, reverb_probability=0.4, rt60=(0.2, 0.3),
        direct_db=(1.0, 2.0),
        telephone_probability=0.5, eight_bit_probability=0.6, peak_db=(-12.0, -6.0), mixup_probability=0.7,
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
        "epoch": 3, "zzz": 1, "epochs": "ten", "batch_size": 0, "seed": 1.5, "device": "gpu", "data_dir": 7,
        "augmentation": {"sped": [1, 1], "enabled": 1, "snr_db": [5], "shift": 3},
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path / "bad.json", values))
    assert sorted(caught.value.faults) == [
        "augmentation.enabled: expected true or false, got 1",
        "augmentation.shift: expected a number from 0 to 1, got 3.0",
        "augmentation.snr_db: expected two numbers, got [5]",
        "batch_size: expected a number from 2 to 65536, got 0",
        "data_dir: expected text in quotes, got 7",
        "device: expected one of auto, cpu, cuda, got 'gpu'",
        "epochs: expected a whole number, got 'ten'",
        "seed: expected a whole number, got 1.5",
        "unknown setting 'augmentation.sped', did you mean augmentation.speed?",
        "unknown setting 'epoch', did you mean epochs?",
        "unknown setting 'zzz'",
    ]
    message = str(caught.value)
    assert message.startswith(f"11 faults in {tmp_path / 'bad.json'}: ")
    assert "\n" not in message


def test_near_names(tmp_path: Path) -> None:
    for typed, meant in (("learning-rate", "learning_rate"), ("batchsize", "batch_size"), ("model_dir", "models_dir")):
        with pytest.raises(ConfigError, match=f"unknown setting '{typed}', did you mean {meant}\\?"):
            load_config(write(tmp_path / "near.json", {typed: 1}))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "not JSON: "), ("[1]", "expected a JSON object of settings, got list"), ("", "not JSON: "),
        ('{"learning_rate": NaN}', "learning_rate: expected a number, got nan"),
        ('{"learning_rate": 1' + 400 * "0" + "}", "learning_rate: expected a number from 1e-08 to 10"),
        ('{"epochs": 1' + 5000 * "0" + "}", "not JSON: "),
        (100_000 * "[", "not JSON: "),
        ('{"augmentation": 3}', "augmentation: expected an object, got 3"),
        ('{"augmentation": {"speed": ["a", "b"]}}', "augmentation.speed: expected two numbers"),
    ],
    ids=["cut", "list", "empty", "nan", "huge", "endless", "deep", "no object", "words for numbers"],
)  # fmt: skip
def test_files_that_cannot_be_meant(text: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    (found,) = caught.value.faults
    assert found.startswith(fault)
    assert str(path) in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00{")
    for path in (tmp_path / "none.json", tmp_path, tmp_path / "binary.json"):
        with pytest.raises(ConfigError, match="cannot read it"):
            load_config(path)


def test_byte_order_mark_of_windows_editors(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"epochs": 3}', encoding="utf-8-sig")
    assert load_config(path) == {"epochs": 3}


def test_null_means_the_pipelines_own(tmp_path: Path) -> None:
    path = write(tmp_path / "config.json", {"epochs": None, "augmentation": None})
    assert TrainConfig(**load_config(path)) == TrainConfig()
    with pytest.raises(ConfigError, match="seed: expected a whole number, got None"):
        load_config(write(path, {"seed": None}))


# --- flags ---------------------------------------------------------------------------------------


def test_no_flags_are_the_defaults() -> None:
    assert parse() == TrainConfig()


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


def test_dash_and_underscore_are_alike() -> None:
    expected = TrainConfig(batch_size=32, data_dir="a-b_c")
    assert parse("--batch-size", "32", "--data-dir", "a-b_c") == expected
    assert parse("--batch_size=32", "--data-dir=a-b_c") == expected
    assert underscored("--data-dir=--a-b") == "--data_dir=--a-b"
    assert underscored("-b-c") == "-b-c"
    assert underscored("--") == "--"


def test_model_dir_is_models_dir() -> None:
    for flag in ("--model_dir", "--models_dir", "--model-dir", "--models-dir"):
        assert parse(flag, "there").models_dir == "there"


def test_resume_forms() -> None:
    assert parse().resume is None
    assert parse("--resume").resume == "latest"
    assert parse("--resume", "--seed", "3").resume == "latest"
    assert parse("--resume", "latest").resume == "latest"
    assert parse("--resume", "12").resume == "12"
    assert parse("--resume=12").resume == "12"


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "c.json", {"epochs": 5, "seed": 9, "augmentation": {"speed": [0.9, 1.1], "shift": 0.5}})
    config = parse(
        "--config", str(path), "--epochs", "7", "--augmentation.shift", "0.25", "--no-augmentation.spec-augment"
    )
    expected = {"speed": (0.9, 1.1), "shift": 0.25, "spec_augment": False}
    assert config == TrainConfig(epochs=7, seed=9, augmentation=expected)


def test_flags_complete_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "c.json", {"split": "speaker"})
    assert parse("--config", str(path), "--held-out-speaker", "theo").held_out_speaker == "theo"
    with pytest.raises(ConfigError, match="needs held_out_speaker"):
        parse("--config", str(path))


def test_negative_numbers_are_values() -> None:
    config = parse("--augmentation.level_db", "-30", "-1.5")
    assert config.augmentation == {"level_db": (-30.0, -1.5)}


def test_flags_out_of_range_are_listed_together() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("--epochs", "0", "--learning_rate", "nan", "--augmentation.shift", "2")
    assert caught.value.exit_code == 2
    assert len(caught.value.faults) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--batchsize", "3"], "unknown argument --batchsize, did you mean --batch_size?"),
        (["--epoch=3"], "unknown argument --epoch=3, did you mean --epochs?"),
        (["mfcc"], "unknown argument mfcc"),
        (["--device", "tree"], "invalid choice: 'tree'"),
        (["--epochs", "many"], "invalid int value: 'many'"),
        (["--epochs"], "expected one argument"),
        (["--augmentation.speed", "1"], "expected 2 arguments"),
    ],
)
def test_wrong_flags_are_one_line_and_exit_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*words)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("train: ")
    assert said in error
    assert error.endswith("(see train --help)\n")
    assert error.count("\n") == 1


def test_help_tells_about_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for f in dataclasses.fields(TrainConfig):
        if f.name != "augmentation":
            assert f"--{f.name}" in shown
            assert f.metadata["help"]
    assert "(default: official)" in shown


# --- recipes -------------------------------------------------------------------------------------


def test_resolved_fills_only_what_was_left_open() -> None:
    recipe = Recipe(60, 64, 0.003, 0.01)
    resolved = TrainConfig(epochs=5, weight_decay=0.0).resolved(MFCC, recipe)
    assert (resolved.epochs, resolved.batch_size, resolved.learning_rate, resolved.weight_decay) == (5, 64, 0.003, 0.0)
    assert resolved.pipeline == MFCC
    assert resolved.augmentation == recipe.augmentation
    assert resolved.resolved(MFCC, Recipe(1, 1, 1.0, 1.0)) == resolved


OWN = Recipe(60, 64, 0.003, 0.01, AugmentationConfig(speed=(0.7, 1.5), noise_probability=0.9, tilt_db=2.0))


def test_settings_of_augmentation_start_from_the_recipe(tmp_path: Path) -> None:
    expected = dataclasses.replace(OWN.augmentation, shift=0.5)
    path = write(tmp_path / "c.json", {"augmentation": {"shift": 0.5}})
    for config in (
        parse("--augmentation.shift", "0.5"), parse("--config", str(path)), TrainConfig(augmentation={"shift": 0.5}),
    ):  # fmt: skip
        assert config.resolved(MFCC, OWN).augmentation == expected
        assert config.resolved(MFCC, Recipe(1, 2, 1.0, 1.0)).augmentation == AugmentationConfig(shift=0.5)
    both = parse("--config", str(path), "--augmentation.tilt_db", "1", "--no_augmentation.enabled")
    assert both.resolved(MFCC, OWN).augmentation == dataclasses.replace(expected, tilt_db=1.0, enabled=False)
    assert TrainConfig().resolved(MFCC, OWN).augmentation == OWN.augmentation
    assert TrainConfig(augmentation={}).resolved(MFCC, OWN).augmentation == OWN.augmentation
    assert TrainConfig(augmentation=AugmentationConfig()).resolved(MFCC, OWN).augmentation == AugmentationConfig()
    with pytest.raises(TypeError, match="resolved"):
        _ = TrainConfig(augmentation={"shift": 0.5}).augmenting
    assert TrainConfig().resolved(MFCC, OWN).augmenting == OWN.augmentation


def test_what_a_run_writes_down_is_whole_and_wins_over_any_recipe(tmp_path: Path) -> None:
    resolved = TrainConfig(augmentation={"shift": 0.5}).resolved(MFCC, OWN)
    written = to_dict(resolved)
    assert written["augmentation"].keys() == {f.name for f in dataclasses.fields(AugmentationConfig)}
    read = TrainConfig(**load_config(write(tmp_path / "config.json", written)))
    assert read == resolved
    assert read.resolved(MFCC, Recipe(1, 2, 1.0, 1.0)) == resolved
    open_settings = to_dict(TrainConfig(augmentation={"speed": [0.9, 1.1]}))
    assert TrainConfig(**load_config(write(tmp_path / "open.json", open_settings))).augmentation == {
        "speed": (0.9, 1.1)
    }
