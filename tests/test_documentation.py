"""Commands, Python blocks, JSON blocks, flags, links and tables of the documentation work as printed.

Commands are the lines of ```bash blocks. They run in a folder with the files they name (`audio.wav`, `recordings/`,
`my_config.json`, `models/` ...) and a tiny corpus behind $DIGIT_DATA_DIR; `shrink` makes long ones small. `make` and
`pip` are not run, but what they name must exist. A command that no rule knows fails.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
import soundfile

from digit_detector import classifier, listen, serve, tune_threshold
from digit_detector.audio import SAMPLE_RATE
from digit_detector.cli.parser import OneLineParser
from digit_detector.labels import MFCC
from digit_detector.versions import Provenance
from ml_training import train_live
from ml_training.config import AugmentationConfig, TrainConfig, load_config, to_dict
from ml_training.data.tts import VOICES, synthesize_words
from ml_training.deploy import version_store
from ml_training.flags import add_train_flags, train_config_from
from ml_training.pipelines import get_pipeline
from ml_training.training.checkpoint import CheckpointStore
from ml_training.training.classification import run_identity
from ml_training.training.experiment import run
from ml_training.tuning.space import parse_space

ROOT = Path(__file__).resolve().parents[1]
ONNX = "models/mfcc_classifier/model.onnx"
EXPORTS = ("digits export", "python ml_training/export.py", "python benchmarks/int8.py")
PAGES = ("install", "quickstart", "predict", "train", "evaluate", "deploy")
RUN = ("README.md", "ml_training/README.md", "CONTRIBUTING.md", *(f"docs/{page}.md" for page in PAGES))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENTRY_POINTS = {
    "python ml_training/train.py": "ml_training.train",
    "python ml_training/inference.py": "ml_training.inference",
    "python ml_training/evaluate.py": "ml_training.evaluate",
    "python ml_training/export.py": "ml_training.export",
    "python ml_training/inspect_model.py": "ml_training.inspect_model",
    "python ml_training/versions.py": "ml_training.versions",
    "python ml_training/demo.py": "ml_training.demo",
    "digits": "ml_training.cli",
}
# Typed into a shell; all others are calls of main().
TYPED = (
    "python ml_training/train.py --pipeline mfcc --epochs 30",
    "python ml_training/inference.py --model_dir models --pipeline mfcc --audio x.wav",
    "digits predict x.wav",
    "digits listen --file talk.wav",
    "python ml_training/inspect_model.py models/mfcc_classifier/model.onnx",
)
SET_UP = ("make ", "pip ", "python -m venv ", "source ")
# These go on until somebody ends them (tests/digit_detector/listening and webapp type them) or train for hours on
# recordings that are not here (tests/acoustic types them).
ENDLESS = (
    "digits listen", "digits serve", "digits train-live --corpora_dir corpora --hold_out 3 4 --out acoustic.onnx"
)  # fmt: skip
# Over ten seconds, or one more training like those that the quick tests do.
SLOW = (
    "--pipeline all", "demo", "torchrun", "--dataset", "--data_dir", "--extra_digits_dir", "--non_digit_dir",
    "--models_dir", "--teacher_dir", "--batch_size", "--optimizer", "tensorboard", "benchmarks/", "--protocol official",
    "digits benchmark", "--protocol loso --seeds", "--cv", "digits tune", "--config tuning/best.json",
    "--config fast",
)  # fmt: skip
REAL = ("--dataset fsdd", "--protocol official", "benchmarks/floors.py")


class Block(NamedTuple):
    place: str  # document:line
    language: str
    text: str


def blocks(document: str) -> list[Block]:
    """The fenced blocks of a document."""
    found, opened = [], None
    for number, line in enumerate((ROOT / document).read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            if opened is None:
                opened = (f"{document}:{number}", line.removeprefix("```"), [])
            else:
                found.append(Block(opened[0], opened[1], "\n".join(opened[2])))
                opened = None
        elif opened is not None:
            opened[2].append(line)
    assert opened is None, f"{document}: a block is not closed"
    return found


BLOCKS = [block for document in RUN for block in blocks(document)]
COMMANDS = list(dict.fromkeys(line for b in BLOCKS if b.language == "bash" for line in b.text.splitlines() if line))


def marked(command: str) -> object:
    marks = [pytest.mark.slow] if any(part in command for part in SLOW) else []
    if "--mlflow" in command and not importlib.util.find_spec("mlflow"):
        marks.append(pytest.mark.skip(reason='MLflow is not installed: pip install -e ".[mlflow]"'))
    marks += [pytest.mark.real_data] if any(part in command for part in REAL) else []
    return pytest.param(command, marks=marks, id=command)


def is_space(block: Block) -> bool:
    return block.language == "json" and '"from"' in block.text


def trains(command: str) -> bool:
    entrys = ("python ml_training/train.py", "digits train ", "torchrun ")
    return command.startswith(entrys) and "--cv" not in command


def train_words(command: str) -> list[str]:
    """What the entry of a training command is given."""
    words = shlex.split(command)
    return words[next(i for i, word in enumerate(words, 1) if word in ("ml_training/train.py", "train")) :]


def shrink(command: str) -> str:
    """The same with one epoch, few voices, the speakers that the tiny corpus has, and fewer runs of a benchmark."""
    if trains(command):
        command = re.sub(r"--epochs \d+", "--epochs 1", command)
        command += "" if "--epochs" in command else " --epochs 1"
        command += "" if "--synthetic_voices" in command else " --synthetic_voices 4"
    if command.startswith("python benchmarks/floors.py"):
        command = command.replace("--seeds 0 1 2", "--seeds 0").replace(" --loso", "") + " --epochs 1"
    if "--protocol loso" in command:
        command = command.replace("--seeds 0 1 2", "--seeds 0 --epochs 1 --speakers speaker0 speaker2")
    if command.startswith("python benchmarks/start_up.py"):
        command += " --runs 1"
    if command.startswith("python benchmarks/int8.py"):
        command = command.replace("--runs 500", "--runs 3")
    if "--cv" in command:
        command = re.sub(r"--cv \d+", "--cv 2", command).replace("--seeds 0 1 2", "--seeds 0") + " --epochs 1"
        command = command.replace(" --compare cv.json", "")  # tests/evaluation/test_cross_validation.py has one
    if command.startswith("digits tune"):
        command = re.sub(r"--trials \d+", "--trials 2", command) + " --epochs 1"
    if command.startswith("tensorboard"):
        command += " --inspect"
    return command.replace("jackson", "speaker1")


@pytest.fixture(scope="module")
def checkpoints(tiny_corpus, tmp_path_factory, tiny_folder) -> Path:
    """A folder of models that a training of mfcc on the tiny corpus left."""
    folder = tmp_path_factory.mktemp("run")
    config = TrainConfig(
        pipeline=MFCC, dataset="folder", data_dir=str(tiny_folder), epochs=12, negative_ratio=0.0,
        models_dir=str(folder / "models"), log_dir=str(folder / "logs"),
    )  # fmt: skip
    assert run(config).exit_code == 0
    return folder / "models"


@pytest.fixture
def desk(tmp_path, tiny_folder, tiny_models, monkeypatch):
    """The current folder, holding what the documents name."""
    for name in ("audio.wav", "x.wav"):
        shutil.copyfile(tiny_folder / "7_speaker1_2.wav", tmp_path / name)
    soundfile.write(tmp_path / "talk.wav", synthesize_words([(VOICES[1], "seven")], seed=3)[0], SAMPLE_RATE)
    (tmp_path / "phone_numbers").mkdir()
    shutil.copyfile(tmp_path / "talk.wav", tmp_path / "phone_numbers" / "ann.wav")
    (tmp_path / "phone_numbers" / "clips.tsv").write_text(
        "file\tspeaker\tfold\tdigits\nann.wav\tann\t0\t7\n", encoding="utf-8"
    )
    shutil.copytree(tiny_folder, tmp_path / "recordings")
    shutil.copytree(tiny_models, tmp_path / "models")
    shutil.copyfile(tmp_path / ONNX, tmp_path / ONNX.replace("model.onnx", "model_int8.onnx"))
    for _ in range(2):  # versions 1 and 2
        provenance = Provenance(MFCC, "tiny", "tiny", True, "official", "", "", to_dict(TrainConfig()), {}, "")
        version_store.add(tmp_path / "models" / "mfcc_classifier", tiny_models / "mfcc_classifier", provenance, {})
    for digit, name in itertools.product(range(10), ("one take.wav", "another.wav", "third.wav")):
        place = tmp_path / "my_digits" / str(digit) / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tiny_folder / f"{digit}_speaker{len(name) % 4}_1.wav", place)
    rows = [f"my_digits/{digit}/{name}.wav,{digit}" for digit in range(10) for name in ("one take", "another", "third")]
    (tmp_path / "my_digits.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    for folder, names in {"more": ("{}_erin_0", "{}_erin_7"), "words": ("yes_ann_{}",), "noise": ("rain_{}",)}.items():
        (tmp_path / folder).mkdir()
        for name, digit in itertools.product(names, range(10)):
            shutil.copyfile(tiny_folder / f"{digit}_speaker2_1.wav", tmp_path / folder / f"{name.format(digit)}.wav")
    config = TrainConfig().resolve(MFCC, get_pipeline(MFCC).recipe)
    store = CheckpointStore(tmp_path / "teachers" / "mfcc_classifier", run_identity(MFCC, config, "made up"))
    store.save_best(1, get_pipeline(MFCC).build().state_dict(), {})
    (tmp_path / "my_config.json").write_text(
        next(b.text for b in BLOCKS if b.language == "json" and not is_space(b)), encoding="utf-8"
    )
    (tmp_path / "space.json").write_text(next(b.text for b in BLOCKS if is_space(b)), encoding="utf-8")
    (tmp_path / "tuning").mkdir()
    (tmp_path / "tuning" / "best.json").write_text('{"pipeline": "mfcc", "learning_rate": 0.01}', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIGIT_DATA_DIR", str(tiny_folder))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


# --- commands ------------------------------------------------------------------------------------


def test_blocks_say_what_they_are():
    assert {block.language for block in BLOCKS} <= {"bash", "python", "json", "text", "csv"}
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(SET_UP)])
def test_set_up_commands_name_what_exists(command):
    check_set_up(command)


def check_set_up(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        for word in words[1:]:
            name, sign, value = word.partition("=")
            if not sign:
                assert re.search(rf"^{name}: .*##", MAKEFILE, re.MULTILINE), f"no target {name}"
                continue
            assert re.search(rf"^#   {name} ", MAKEFILE, re.MULTILINE), f"the Makefile knows no {name}"
            if name == "TRAIN_ARGS":
                training(shlex.split(value))
    elif words[0] == "pip":
        assert words[1] == "install"
        pins = (ROOT / "ml_training_requirements.txt").read_text(encoding="utf-8").splitlines()
        for word in words[2:]:
            if word.endswith(".txt"):
                assert (ROOT / word).is_file()
            elif extras := re.fullmatch(r"\.\[(.*)\]", word):
                assert set(extras[1].split(",")) <= set(PROJECT["optional-dependencies"])
            elif "==" in word:
                assert word in pins
    else:
        assert command in ("python -m venv .venv", "source .venv/bin/activate")


def training(words: list[str]) -> TrainConfig:
    """The settings that the flags of a training command stand for."""
    parser = OneLineParser()
    add_train_flags(parser)
    return train_config_from(parser.parse_args(words))


@pytest.mark.parametrize("command", [marked(c) for c in COMMANDS if not c.startswith(SET_UP) and c not in ENDLESS])
def test_command(command, desk, request, monkeypatch, capsys):
    if any(part in command for part in REAL):
        monkeypatch.undo()  # the real recordings, not the tiny ones
        monkeypatch.setenv("DIGIT_DATA_DIR", str(request.getfixturevalue("fsdd_dir").resolve()))
        monkeypatch.setenv("DIGIT_CORPORA_DIR", str(request.getfixturevalue("corpora_dir").resolve()))
        monkeypatch.chdir(desk)
    if command.startswith(EXPORTS):
        shutil.copytree(request.getfixturevalue("checkpoints"), desk / "models", dirs_exist_ok=True)
    before, started = set(desk.rglob("*")), time.time()
    words = shlex.split(shrink(command))
    entry = next((entry for entry in ENTRY_POINTS if command.startswith(f"{entry} ") or command == entry), None)
    if entry is None or (command in TYPED and shutil.which("bash")):
        typed(shrink(command), desk)
    else:
        monkeypatch.setattr(sys, "argv", [words[0] if entry == "digits" else str(ROOT / words[1])])
        assert importlib.import_module(ENTRY_POINTS[entry]).main(words[len(entry.split()) :]) == 0, (
            capsys.readouterr().err
        )
    if command.startswith(EXPORTS[:2]):
        assert {p.name for p in desk.rglob("*.onnx") if p.stat().st_mtime > started}
    if trains(command):
        assert {p.name for p in set(desk.rglob("*")) - before} >= {"training_report.html", "best_model.pt"}
        config = training(train_words(shrink(command)))
        for pipeline in config.pipelines:
            assert (desk / config.models_dir / f"{pipeline}_classifier" / "model.onnx").is_file()


def test_every_training_command_has_flags_that_exist(desk):
    found = [training(train_words(command)) for command in COMMANDS if trains(command)]
    assert len(found) > 10
    assert {config.pipeline for config in found} >= {"all", "mfcc", "mel_cnn"}


def typed(command: str, desk: Path) -> None:
    """Type a command into a shell whose `python` is the one that runs this, in a folder with the checkout's scripts."""
    program = command.split()[0]
    assert program in ("python", "digits", "tensorboard", "torchrun"), f"nothing here knows {program}"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if not shutil.which(program, path=path):
        pytest.skip(f"{program} is not installed beside {sys.executable}")
    for name in ("ml_training", "benchmarks"):
        (desk / name).symlink_to(ROOT / name)
    done = subprocess.run(
        ["bash", "-c", command], cwd=desk, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=600
    )
    for name in ("ml_training", "benchmarks"):
        (desk / name).unlink()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_one_command_of_each_entry_is_typed_without_waiting_for_the_slow_tests():
    assert set(TYPED) <= set(COMMANDS)
    quick = [c for c in COMMANDS if not any(part in c for part in SLOW)]
    assert {entry for entry in ENTRY_POINTS for c in quick if c.startswith(f"{entry} ")} >= set(ENTRY_POINTS) - {
        "python ml_training/demo.py"  # all of it runs in tests/test_demo.py
    }


def test_a_command_that_nothing_knows_fails(desk):
    for command in ("python ml_training/tarin.py", "cargo build"):
        with pytest.raises(AssertionError):
            typed(command, desk)
    for command in ("make trian", "make train PIPARGS=x", "pip install '.[trian]'", "pip install torch==1.0"):
        with pytest.raises(AssertionError):
            check_set_up(command)


# --- Python, JSON, flags, messages ---------------------------------------------------------------


@pytest.mark.parametrize("block", [pytest.param(b, id=b.place) for b in BLOCKS if b.language == "python"])
def test_python_block(block, desk, capsys):
    if block.place.startswith("README.md"):  # works right after installation, before anything is trained
        shutil.rmtree(desk / "models")
    exec(compile(block.text, block.place, "exec"), {"__name__": "block"})
    assert capsys.readouterr().out


def test_a_search_space_is_one():
    assert [parse_space(json.loads(block.text)) for block in BLOCKS if is_space(block)]


@pytest.mark.parametrize(
    "block", [pytest.param(b, id=b.place) for b in BLOCKS if b.language == "json" and not is_space(b)]
)
def test_json_block(block, tmp_path):
    (tmp_path / "config.json").write_text(block.text, encoding="utf-8")
    assert TrainConfig(**load_config(tmp_path / "config.json"))
    assert json.loads(block.text)


def inline_code(document: str) -> list[str]:
    """What stands between single backticks."""
    text = re.sub(r"^```.*?^```", "", (ROOT / document).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]


@pytest.mark.parametrize("document", [*RUN, "CHANGELOG.md", "SECURITY.md", "docs/design.md"])
def test_commands_and_flags_within_sentences_exist(document, capsys):
    parser = OneLineParser()
    add_train_flags(parser)
    known = {option for action in parser._actions for option in action.option_strings}
    for entry in (
        "train",
        "tune",
        "cache",
        "inference",
        "evaluate",
        "export",
        "inspect_model",
        "versions",
        "benchmark",
        "demo",
    ):
        with contextlib.suppress(SystemExit):
            importlib.import_module(f"ml_training.{entry}").main(["--help"])
        known |= set(re.findall(r"--\w+", capsys.readouterr().out))
    for live in (serve, listen, train_live, tune_threshold):
        with contextlib.suppress(SystemExit):
            live.main(["--help"])
        known |= set(re.findall(r"--\w+", capsys.readouterr().out))
    known |= {"--contenders", "--rounds", "--singles"}  # of benchmarks/peers.py
    known |= {"--synthetic", "--check", "--verbose", "--ways"}
    known |= {"--standalone", "--nproc_per_node", "--nnodes", "--max_restarts"}  # torchrun's
    own: set[str] = set()
    for code in inline_code(document):
        if code.startswith("make ") and "..." not in code:
            check_set_up(code)
        if script := re.match(r"python (\S+\.py)", code):
            own = set(re.findall(r"--[a-z][\w-]*", (ROOT / script[1]).read_text(encoding="utf-8")))
        if not code.startswith(("make ", "pip ", "python -m pip")):
            flags = set(re.findall(r"(?<![\w-])--[a-z][\w.]*", code))
            assert flags <= known | (own if script else set()), f"{document}: {code}"


# --- tables --------------------------------------------------------------------------------------


def test_tables_follow_the_code():
    tables = runpy.run_path(str(ROOT / "docs" / "tables.py"))
    for path, text in tables["written"]().items():
        assert path.read_text(encoding="utf-8") == text, "run: python docs/tables.py"
    settings = tables["SETTINGS"].read_text(encoding="utf-8")
    for cls, prefix in ((TrainConfig, ""), (AugmentationConfig, "augmentation.")):
        assert all(f"| `{prefix}{f.name}` |" in settings for f in dataclasses.fields(cls))


def test_every_key_of_a_prediction_is_documented():
    text = (ROOT / "docs" / "predict.md").read_text(encoding="utf-8")
    keys = {*classifier.FilePrediction.__annotations__, "error", *classifier.Benchmark.__annotations__}
    assert keys <= {key for line in text.splitlines() if line.startswith("| `") for key in re.findall(r"`(\w+)`", line)}


def test_every_link_leads_to_a_file():
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "ml_training" / "README.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (document.parent / target).exists(), f"{document.name}: {target}"
