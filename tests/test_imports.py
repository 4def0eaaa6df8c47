"""What may import what: the rule of the rooms, and that answering stays light."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ml_training"
HEAVY = {
    "torch", "librosa", "matplotlib", "scipy", "sklearn", "rich", "pooch", "onnx", "onnxscript", "jinja2", "optuna",
}  # fmt: skip
DOORS = {
    "train", "train_spotter", "inference", "demo", "evaluate", "export", "inspect_model", "versions", "cache", "tune",
    "benchmark", "cli",
}  # fmt: skip
BASE = {"audio", "audio_files", "audio_headers", "audio_streams", "config", "errors", "results"}
# room -> rooms it may import from; doors may import everything but other doors
RULES = {
    "": set(),
    "errors": set(),
    "config": {"errors"},
    "flags": {"config", "errors"},
    "audio_headers": {"errors"},
    "audio_streams": {"audio_headers", "errors"},
    "audio_files": {"audio_headers", "audio_streams", "errors"},
    "audio": {"audio_files", "errors"},
    "results": BASE,
    "examples": {"errors"},
    "data": BASE | {"data"},
    "pipelines": BASE | {"pipelines"},
    "utils": BASE | {"utils", ""},
    "deploy": BASE | {"deploy", "utils", ""},
    "batch": BASE | {"batch", "utils"},
    # inference is a door and a library: what was exported is timed by the very code that answers
    "training": BASE | {"data", "pipelines", "utils", "deploy", "evaluation", "training", "inference", ""},
    "spotting": BASE | {"data", "pipelines", "utils", "deploy", "training", "spotting", ""},
    "tuning": BASE | {"data", "pipelines", "utils", "deploy", "evaluation", "training", "tuning", "inference", ""},
    "scale": BASE | {"data", "pipelines", "utils", "training", "tuning", "batch", "scale", "inference", "train", ""},
    # a protocol may train, and asks the code that answers; what training takes of it (calibration) needs neither
    "evaluation": BASE | {"data", "pipelines", "utils", "deploy", "evaluation", "training", "inference", ""},
}


LIVE = ROOT / "digit_detector"
LIVE_DOORS = {"listen", "serve", "tune_threshold"}
# rooms of the live detector -> those it may import from; of ml_training only what answering needs itself
LIVE_RULES = {
    "": {"streaming"},
    "streaming": {"streaming"},
    "processors": {"processors"},
    "evaluation": {"streaming", "evaluation"},
    "listening": {"streaming", "listening"},
    "webapp": {"streaming", "processors", "webapp"},
}
ANSWERING = BASE | {"examples", "flags", "inference", "deploy", "utils", ""}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room(module: str) -> str:
    return module.removeprefix("ml_training").removeprefix(".").split(".")[0]


def imported(path: Path, deferred: bool = True) -> set[str]:
    """Modules that a file imports; `deferred` includes imports within functions and for type checkers only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if deferred else (n for top in tree.body for n in _at_import(top))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in inner}
    return found


def _at_import(node: ast.AST):
    """The nodes below `node` that run when the module is imported."""
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
        return
    yield node
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        for child in ast.iter_child_nodes(node):
            yield from _at_import(child)


@pytest.mark.parametrize("module", MODULES)
def test_rooms_import_downwards_only(module):
    own = {name for name in imported(MODULES[module]) if name.split(".")[0] == "ml_training"}
    rooms = {room(name) for name in own}
    if room(module) in DOORS:
        assert not rooms & (DOORS - {"inference", room(module)}), "doors do not lead through each other"
    else:
        assert room(module) in RULES, "a new room needs a rule here"
        assert rooms <= RULES[room(module)]


LIVE_MODULES = {module_name(path): path for path in sorted(LIVE.rglob("*.py"))}


@pytest.mark.parametrize("module", LIVE_MODULES)
def test_the_live_detector_stands_on_what_answers_alone(module):
    names = imported(LIVE_MODULES[module])
    rooms = {
        name.removeprefix("digit_detector").removeprefix(".").split(".")[0]
        for name in names
        if name.startswith("digit_")
    }
    own = module.removeprefix("digit_detector").removeprefix(".").split(".")[0]
    if own not in LIVE_DOORS:
        assert rooms <= LIVE_RULES[own]
    assert not rooms & LIVE_DOORS - {own}
    assert {room(name) for name in names if name.split(".")[0] == "ml_training"} <= ANSWERING


def test_no_module_needs_itself():
    every = MODULES | LIVE_MODULES
    needs = {name: imported(path, deferred=False) & every.keys() - {name} for name, path in every.items()}
    while free := [name for name, wanted in needs.items() if not wanted & needs.keys()]:
        for name in free:
            del needs[name]
    assert not needs, "these modules import each other in a circle"


def test_answering_imports_nothing_heavy_at_any_depth():
    every = MODULES | LIVE_MODULES
    light = [name for name in LIVE_MODULES if name != "digit_detector.evaluation.pictures"]
    waiting, seen = ["ml_training.inference", "ml_training.inspect_model", "ml_training.cli", *light], set()
    while waiting:
        module = waiting.pop()
        seen.add(module)
        names = imported(every[module], deferred=False)
        assert not {name.split(".")[0] for name in names} & HEAVY, module
        waiting += [name for name in names if name in every and name not in seen]
    assert "digit_detector.audio" in seen


def test_a_prediction_loads_nothing_heavy(tiny_models, tiny_folder):
    code = """
import json, sys
from ml_training.inference import load_classifier
classifier = load_classifier(sys.argv[1], "mfcc")
digit = classifier.predict(sys.argv[2])["predicted_digit"]
classifier.batch_predict([sys.argv[2]])
print(json.dumps([digit, sorted({name.split(".")[0] for name in sys.modules})]))
"""
    command = [sys.executable, "-c", code, str(tiny_models), str(tiny_folder / "7_speaker0_0.wav")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    digit, loaded = json.loads(done.stdout)
    assert digit == 7
    assert not HEAVY & set(loaded)


def reached(*modules: str) -> set[str]:
    """All modules of ours that importing these loads."""
    every = MODULES | LIVE_MODULES
    waiting, seen = list(modules), set()
    while waiting:
        module = waiting.pop()
        seen.add(module)
        waiting += [n for n in imported(every[module], deferred=False) if n in every and n not in seen]
    return seen


def test_evaluating_and_looking_for_recordings_load_no_torch():
    """Importing them, at least: what cv and loso train with is imported when they are asked for."""
    light = reached(
        "ml_training.evaluate", "ml_training.evaluation.command", "ml_training.train", "ml_training.tune",
        "ml_training.data.checks", "ml_training.tuning.spec",
    )  # fmt: skip
    assert "ml_training.evaluation.rejection" in light
    for module in light:
        names = {name.split(".")[0] for name in imported((MODULES | LIVE_MODULES)[module], deferred=False)}
        assert not names & {"torch", "onnx", "onnxscript", "tensorboard"}, module
