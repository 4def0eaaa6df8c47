"""Settings of a training, read from JSON files and flags (flags.py).

Precedence: defaults < JSON file (`--config`) < flags. A setting left at None takes the value of the pipeline's recipe.
Everything is checked before anything runs, and every fault is listed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from digit_detector.errors import ConfigError, did_you_mean
from digit_detector.fields import choice, number_or, setting
from digit_detector.labels import TRAINED
from ml_training.registry import get_pipeline, pipeline_names, stored_name

DATASETS = ("auto", "fsdd", "folder", "synthetic")
SPLITS = ("official", "random", "speaker", "fold")
OPTIMIZERS = ("adamw", "adam")
SCHEDULERS = ("cosine", "plateau", "step")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
CLIP_STORAGES = ("auto", "memory", "mapped")
MLFLOW_HERE = "here"  # in the place of an address: a database in log_dir
NAMED = Path(__file__).parent / "configs"  # where named configurations lie
MAX_FOLDS = 1000
RENAMED_SETTINGS = {  # earlier name -> name; JSON files, flags and checkpoints may have either
    "extra_dir": "extra_digits_dir", "words_dir": "non_digit_dir", "waveforms": "clip_storage",
    "validation_share": "validation_ratio", "synthetic_share": "synthetic_ratio", "negative_share": "negative_ratio",
    "teacher_share": "distillation_weight", "augmentation.level_db": "augmentation.gain_db",
    "augmentation.equaliser_db": "augmentation.random_eq_db", "augmentation.trim": "augmentation.edge_crop",
    "augmentation.trim_probability": "augmentation.edge_crop_probability",
    "augmentation.shift": "augmentation.time_shift", "augmentation.tract": "augmentation.formant_shift",
    "augmentation.tract_probability": "augmentation.formant_shift_probability",
    "augmentation.generated_share": "augmentation.procedural_ratio",
    "augmentation.recorded_share": "augmentation.recorded_ratio", "augmentation.direct_db": "augmentation.drr_db",
    "augmentation.eight_bit_probability": "augmentation.quantize_probability",
    "augmentation.peak_db": "augmentation.peak_dbfs",
}  # fmt: skip
MAX_VOICES = 462  # that espeak-ng has for us; data/tts.py lists them


@dataclass(frozen=True)
class AugmentationConfig:
    """Augmentation of training clips. Values are drawn uniformly from ranges, for each clip."""

    enabled: bool = setting(True, "augment training clips")
    speed: tuple[float, float] = setting((0.8, 1.25), "speed factors, pitch included", 0.25, 4.0)
    gain_db: tuple[float, float] = setting((-20.0, 0.0), "gain in dB", -80.0, 20.0)
    random_eq_db: float = setting(6.0, "largest gain of the random smooth equaliser, dB either way", 0.0, 40.0)
    noise_probability: float = setting(0.8, "share of clips that get noise", 0.0, 1.0)
    snr_db: tuple[float, float] = setting((-5.0, 40.0), "signal-to-noise ratio over the word, dB", -20.0, 100.0)
    edge_crop_probability: float = setting(0.0, "share of words that lose some of an end; each end by itself", 0.0, 1.0)
    edge_crop: float = setting(0.15, "largest share of a word that an end loses", 0.0, 0.5)
    time_shift: float = setting(1.0, "how far into the free part of the second a word may move, 0 to 1", 0.0, 1.0)
    vtlp: tuple[float, float] = setting((0.82, 1.22), "vocal-tract warping factors of the mel filters", 0.5, 2.0)
    spec_augment: bool = setting(True, "hide random bands and frames of the spectrogram")
    formant_shift_probability: float = setting(0.0, "share of clips whose formants are moved in the waveform", 0.0, 1.0)
    formant_shift: tuple[float, float] = setting((0.85, 1.18), "factors of formants, pitch and duration kept", 0.5, 2.0)
    pitch_probability: float = setting(0.0, "share of clips whose pitch is moved", 0.0, 1.0)
    pitch: tuple[float, float] = setting((0.8, 1.25), "factors of pitch, formants and duration kept", 0.5, 2.0)
    tilt_db: float = setting(0.0, "largest tilt of the spectrum, dB an octave either way", 0.0, 12.0)
    band_probability: float = setting(0.0, "share of clips that get band limits", 0.0, 1.0)
    band_low_hz: tuple[float, float] = setting((50.0, 400.0), "lower band limits, Hz", 1.0, 2000.0)
    band_high_hz: tuple[float, float] = setting((2500.0, 4000.0), "upper band limits, Hz", 1000.0, 4000.0)
    procedural_ratio: float = setting(
        0.5, "share of the noisy clips that get varied sounds, not steady noise", 0.0, 1.0
    )
    noise_dir: str | None = setting(None, "folder of recorded background noise (default: generated noise)")
    recorded_ratio: float = setting(1.0, "share of the noisy clips that get noise from noise_dir", 0.0, 1.0)
    reverb_probability: float = setting(0.0, "share of clips that get a room", 0.0, 1.0)
    rt60: tuple[float, float] = setting((0.15, 0.6), "seconds in which the room's sound falls by 60 dB", 0.02, 2.0)
    drr_db: tuple[float, float] = setting((0.0, 15.0), "level of direct sound above the room's, dB", -20.0, 60.0)
    telephone_probability: float = setting(0.0, "share of clips in telephone band and 8-bit mu-law", 0.0, 1.0)
    quantize_probability: float = setting(0.0, "share of clips in 8 evenly spaced bits", 0.0, 1.0)
    peak_dbfs: tuple[float, float] = setting((-24.0, 0.0), "peak of what becomes 8 bits, dB of full scale", -40.0, 0.0)
    mixup_probability: float = setting(0.0, "share of clips that another is laid over", 0.0, 1.0)
    mixup_alpha: float = setting(0.3, "mixup's concentration: the higher, the more equal the two", 0.01, 10.0)
    cutmix_probability: float = setting(0.0, "share of clips in which a stretch comes from another", 0.0, 1.0)

    @property
    def mixes(self) -> bool:
        """Whether clips get labels of two digits."""
        return self.enabled and (self.mixup_probability > 0 or self.cutmix_probability > 0)

    @property
    def warps(self) -> tuple[float, float]:
        """The vocal-tract factors that features draw from; (1, 1) when augmentation is off."""
        return self.vtlp if self.enabled else (1.0, 1.0)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run."""

    pipeline: str = setting(
        "all", f"which pipeline to train: all, {', '.join(pipeline_names())}, or your own as module:ATTRIBUTE"
    )
    dataset: str = choice(*DATASETS, default="auto", help="which recordings; auto falls back to synthetic speech")
    data_dir: str | None = setting(
        None, "folder or table of recordings (default: $DIGIT_DATA_DIR, the cache, a download)"
    )
    data_url: str | None = setting(None, "address of the FSDD archive (default: $DIGIT_DATA_URL, the public tag)")
    extra_digits_dir: str | None = setting(
        None, "folder or table of further recordings of digits, none an official test clip"
    )
    split: str = choice(*SPLITS, default="official", help="how clips are divided into training, validation and test")
    held_out_speaker: str | None = setting(None, "the test speaker of --split speaker")
    fold: str | None = setting(None, "which of how many folds is the test part of --split fold, as 3/10")
    models_dir: str = setting(TRAINED, "where trained models go")
    log_dir: str = setting("train_logs", "where logs, plots and the report go")
    epochs: int | None = setting(None, "passes over the training part (default: the pipeline's own)", 1, 100_000)
    width: float = setting(1.0, "how wide the network's layers are, against its pipeline's own", 0.25, 4)
    batch_size: int | None = setting(
        None, "clips per step, of all processes together (default: the pipeline's own)", 2, 65_536
    )
    learning_rate: float | None = setting(None, "peak learning rate (default: the pipeline's own)", 1e-8, 10.0)
    weight_decay: float | None = setting(None, "weight decay (default: the pipeline's own)", 0.0, 10.0)
    optimizer: str = choice(*OPTIMIZERS, default="adamw", help="optimiser")
    scheduler: str = choice(*SCHEDULERS, default="cosine", help="learning-rate schedule (cosine warms up first)")
    label_smoothing: float = setting(0.1, "label smoothing", 0.0, 0.9)
    clip_norm: float = setting(5.0, "largest gradient norm; 0 turns clipping off", 0.0, 1e6)
    ema_decay: float = setting(
        0.99, "decay of the averaged weights that are validated and kept; 0 turns it off", 0.0, 0.99999
    )
    patience: int = setting(
        20, "epochs without a better validation loss before stopping; 0 never stops early", 0, 100_000
    )
    validation_ratio: float = setting(0.1, "share of the training part kept for validation", 0.01, 0.5)
    device: str = choice(*DEVICES, default="auto", help="where to train")
    precision: str = choice(*PRECISIONS, default="auto", help="auto: mixed on CUDA, fp32 on a CPU")
    compile: bool = setting(
        False, "compile the network with torch.compile: a minute or so at first, faster steps on CUDA (on a CPU: gcc)"
    )
    threads: int = setting(1, "CPU threads; a busy machine loses time with more; 0 leaves it to torch", 0, 1024)
    cache: bool = setting(True, "keep decoded recordings, synthetic voices and features (digits cache)")
    clip_storage: str = choice(
        *CLIP_STORAGES, default="auto", help="where clips lie while training; auto: in memory while that is plenty"
    )
    seed: int = setting(0, "seed of everything random", 0, 2**31 - 1)
    keep_checkpoints: str = number_or("all", "3", "how many checkpoint_epoch files to keep: a number or all")
    resume: str | None = number_or("latest", None, "go on from the latest checkpoint, or from the given epoch")
    promote: bool | None = setting(
        None, "make the new version the one that answers (default: unless it is worse than the promoted one)"
    )
    mlflow: str | None = setting(
        None, "log to MLflow at this http, https or sqlite address; alone: into a file in log_dir (extra [mlflow])"
    )
    synthetic_ratio: float | None = setting(
        None, "share of training clips that synthetic voices speak (default: 0.25 with FSDD, none otherwise)", 0.0, 0.9
    )
    synthetic_voices: int = setting(84, "how many voices of espeak-ng these are", 1, MAX_VOICES)
    negative_ratio: float = setting(0.25, "share of the clips of a step that hold no digit", 0.0, 0.9)
    non_digit_dir: str | None = setting(
        None, "folder of recorded words that are no digits (default: synthetic ones alone)"
    )
    teacher_dir: str | None = setting(None, "folder of trained models to learn from, beside the labels")
    distillation_weight: float = setting(0.7, "weight of their outputs in the loss", 0.0, 1.0)
    augmentation: AugmentationConfig | Mapping[str, Any] | None = setting(
        None, "augmentation (default: the pipeline's own, also of every setting that is left out)"
    )

    def __post_init__(self) -> None:
        checked, faults = _check(type(self), vars(self))
        if not faults and isinstance(self.augmentation, Mapping):
            augmentation, every = checked["augmentation"], dataclasses.fields(AugmentationConfig)
            whole = augmentation.keys() == {f.name for f in every}
            object.__setattr__(self, "augmentation", AugmentationConfig(**augmentation) if whole else augmentation)
        names = ("all", *pipeline_names())
        if isinstance(self.pipeline, str) and ":" not in self.pipeline and self.pipeline not in names:
            expected = f"expected one of {', '.join(names)} or module:ATTRIBUTE"
            faults.append(f"pipeline: {expected}, got {self.pipeline!r}{did_you_mean(self.pipeline, names)}")
        if self.dataset == "synthetic" and self.synthetic_ratio:
            faults.append("synthetic_ratio is for recordings: dataset 'synthetic' has no other clips to mix with")
        # A password in an address would end up in logs and in config_*.json.
        if self.mlflow is not None and not re.fullmatch(f"{MLFLOW_HERE}|https?://[^@]+|sqlite:///.+", str(self.mlflow)):
            faults.append(
                f"mlflow: expected {MLFLOW_HERE!r} or an address such as http://localhost:5000 or sqlite:///mlflow.db, "
                "a password in $MLFLOW_TRACKING_PASSWORD"
            )
        if (self.precision, self.device) == ("fp16", "cpu"):
            faults.append("precision fp16 needs a CUDA device: on a CPU take fp32, or bf16 where it is faster")
        if self.split == "speaker" and not self.held_out_speaker:
            faults.append("split 'speaker' needs held_out_speaker, the one to test on")
        if self.split != "speaker" and self.held_out_speaker:
            faults.append(f"held_out_speaker is only for split 'speaker', not {self.split!r}")
        if self.split == "fold" and parse_fold(self.fold) is None:
            faults.append(f"split 'fold' needs fold as 3/10, the third of 2 to {MAX_FOLDS}, got {self.fold!r}")
        if self.split != "fold" and self.fold:
            faults.append(f"fold is only for split 'fold', not {self.split!r}")
        if faults:
            raise ConfigError(faults)

    @property
    def pipelines(self) -> tuple[str, ...]:
        """The pipelines that this run trains."""
        if self.pipeline == "all":
            return pipeline_names()
        return (get_pipeline(self.pipeline).name if ":" in self.pipeline else self.pipeline,)

    def resolve(self, pipeline: str, recipe: Recipe) -> TrainConfig:
        """This configuration for one pipeline, everything left open taken from its recipe."""
        own = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe) if getattr(self, f.name) is None}
        if isinstance(self.augmentation, Mapping):
            own["augmentation"] = dataclasses.replace(recipe.augmentation, **self.augmentation)
        return dataclasses.replace(self, pipeline=stored_name(pipeline), **own)

    @property
    def full_augmentation(self) -> AugmentationConfig:
        """The whole of `augmentation`; raises TypeError unless this configuration is resolved."""
        if not isinstance(self.augmentation, AugmentationConfig):
            raise TypeError("settings of augmentation are open: config.resolve(pipeline, recipe) fills them")
        return self.augmentation


@dataclass(frozen=True)
class Recipe:
    """What a pipeline trains best with; used wherever the user chose nothing."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    augmentation: AugmentationConfig = AugmentationConfig()


def flatten_settings(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings as JSON has them, name and value, those of augmentation with its name before theirs."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", v) for inner, v in value.items())
        else:
            yield name, value


def rename_settings(settings: Mapping[str, Any], prefix: str = "", notify: bool = False) -> dict[str, Any]:
    """Settings with today's names in place of earlier ones; with `notify`, a line on stderr for each, once."""
    renamed = {}
    for name, value in settings.items():
        new = RENAMED_SETTINGS.get(prefix + name, prefix + name).removeprefix(prefix)
        if new != name and notify:
            note_renamed(prefix + name, prefix + new)
        inner = new == "augmentation" and isinstance(value, Mapping)
        renamed[new] = rename_settings(value, "augmentation.", notify) if inner else value
    return renamed


@cache
def note_renamed(old: str, new: str) -> None:
    """Print, once in a process, that a setting or flag has another name."""
    print(f"note: {old} is now named {new}", file=sys.stderr)


# --- checks --------------------------------------------------------------------------------------


def field_types(cls: type) -> dict[str, tuple[Any, bool]]:
    """Name of each field of a dataclass -> its type without None, and whether None is allowed."""
    kinds = {}
    for name, hint in typing.get_type_hints(cls).items():
        given = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        kinds[name] = (next(kind for kind in given if kind is not type(None)), type(None) in given)
    return kinds


def _check(cls: type, values: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Any], list[str]]:
    """Settings of a dataclass as values of their types, and every fault: unknown names, wrong types, wrong values."""
    kinds, metadata = field_types(cls), {f.name: f.metadata for f in dataclasses.fields(cls)}
    checked: dict[str, Any] = {}
    faults: list[str] = []
    for key, value in values.items():
        kind, optional = kinds.get(key, (None, False))
        if kind is None:
            faults.append(f"unknown setting {prefix + key!r}" + did_you_mean(key, kinds, prefix))
        elif value is None and optional:
            checked[key] = None
        elif dataclasses.is_dataclass(kind) and isinstance(value, (typing.cast(type, kind), Mapping)):
            inner = value if isinstance(value, Mapping) else vars(value)
            checked[key], more = _check(typing.cast(type, kind), inner, f"{prefix}{key}.")
            faults += more
        else:
            try:
                checked[key] = _convert(kind, value)
                faults += [f"{prefix}{key}: expected {fault}" for fault in _range_faults(metadata[key], checked[key])]
            except TypeError:
                names = {bool: "true or false", int: "a whole number", float: "a number", str: "text in quotes"}
                name = "two numbers" if typing.get_origin(kind) is tuple else names.get(kind, "an object")
                faults.append(f"{prefix}{key}: expected {name}, got {value!r}")
    return checked, faults


def _convert(kind: Any, value: Any) -> Any:
    """A JSON value as `kind`, strictly: '3' is not a number and 1 is not a truth value. Raises TypeError."""
    if typing.get_origin(kind) is tuple and isinstance(value, (list, tuple)) and len(value) == 2:
        return tuple(_convert(float, v) for v in value)
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf:
        return value if abs(value) > 1e300 else float(value)  # a huge whole number fits no float; the range refuses it
    if kind in (bool, str) and isinstance(value, kind):
        return value
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    raise TypeError


def _range_faults(metadata: Mapping[str, Any], value: Any) -> list[str]:
    word, choices = metadata.get("word"), metadata.get("choices")
    if word and value != word and not re.fullmatch("0*[1-9][0-9]{0,8}", value):
        return [f"{word!r} or a whole number above 0, got {value!r}"]
    if choices and value not in choices:
        return [f"one of {', '.join(choices)}, got {value!r}"]
    low, high = metadata.get("low", -math.inf), metadata.get("high", math.inf)
    numbers = [n for n in (value if isinstance(value, tuple) else (value,)) if isinstance(n, (int, float))]
    faults = [f"a number from {low:g} to {high:g}, got {n}" for n in numbers if not low <= n <= high]
    if not faults and len(numbers) == 2 and numbers[0] > numbers[1]:
        faults.append(f"the smaller number first, got {numbers[0]:g} {numbers[1]:g}")
    return faults


# --- JSON ----------------------------------------------------------------------------------------


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain values, ready for JSON."""
    return dataclasses.asdict(config)


def parse_fold(typed: str | None) -> tuple[int, int] | None:
    """3/10 -> (3, 10), the third fold of ten; None for what cannot be meant."""
    match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", typed or "")
    if match is None:
        return None
    number, folds = int(match[1]), int(match[2])
    return (number, folds) if 1 <= number <= folds and 2 <= folds <= MAX_FOLDS else None


def named_configs() -> dict[str, Path]:
    """The configurations that come with the package: name -> file."""
    return {path.stem: path for path in sorted(NAMED.glob("*.json"))}


def find_config(typed: str | Path) -> Path:
    """The file that is meant: one at this path, or else the named one, `fast` or `configs/fast.json`."""
    path, found = Path(typed), named_configs()
    is_name = path.suffix in ("", ".json") and path.parent in (Path(), Path(NAMED.name))
    return found[path.stem] if is_name and path.stem in found and not path.is_file() else path


def load_config(path: str | Path) -> dict[str, Any]:
    """Keyword arguments for TrainConfig from a JSON file or a named configuration.

    Raises ConfigError that lists every unknown key and wrong value. Whether the settings fit each other is checked by
    TrainConfig, once flags are known too.
    """
    checked, faults = read_config(path)
    if faults:
        raise ConfigError(faults, str(path))
    return checked


def read_config(path: str | Path) -> tuple[dict[str, Any], list[str]]:
    """As `load_config`, with the faults beside the good settings. Raises ConfigError for what is no JSON object."""
    try:
        text = find_config(path).read_text(encoding="utf-8-sig")  # Windows editors start files with a mark
    except (OSError, UnicodeDecodeError) as error:
        hint = f" (by name there are {', '.join(named_configs())})" if isinstance(error, FileNotFoundError) else ""
        raise ConfigError([f"cannot read it: {error}{hint}"], str(path)) from error
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # JSONDecodeError, a number of 5,000 digits, a thousand brackets
        raise ConfigError([f"not JSON: {error}"], str(path)) from error
    if not isinstance(values, dict):
        raise ConfigError([f"expected a JSON object of settings, got {type(values).__name__}"], str(path))
    return _check(TrainConfig, rename_settings(values, notify=True))
