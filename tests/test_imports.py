"""What importing a module loads: answering stays light, and the import contracts of pyproject.toml notice a breach."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ml_training", "digit_detector")
HEAVY = {
    "torch", "librosa", "matplotlib", "scipy", "sklearn", "rich", "pooch", "onnx", "onnxscript", "jinja2", "optuna",
}  # fmt: skip
TRAINS = {"torch", "onnx", "onnxscript", "tensorboard"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def imported(module: str) -> set[str]:
    """Names of the modules that importing `module` imports; not those imported within functions."""
    found = set()
    for top in ast.parse(MODULES[module].read_text(encoding="utf-8")).body:
        for node in at_import(top):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}: imports are absolute here"
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {name if name in MODULES else str(node.module) for name in inner}
    return found


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below `node` that run when the module is imported."""
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
        return
    yield node
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        for child in ast.iter_child_nodes(node):
            yield from at_import(child)


def loaded_by(*modules: str) -> tuple[set[str], dict[str, set[str]]]:
    """Modules of ours that importing these loads, and the other packages each of them imports."""
    waiting, foreign = list(modules), {}
    while waiting:
        module = waiting.pop()
        names = imported(module)
        foreign[module] = {name.split(".")[0] for name in names}
        waiting += [name for name in names if name in MODULES and name not in foreign]
    return set(foreign), foreign


def test_answering_imports_nothing_heavy_at_any_depth() -> None:
    drawing = "digit_detector.evaluation.pictures"
    light = [name for name in MODULES if name.startswith("digit_detector") and name != drawing]
    ours, foreign = loaded_by("ml_training.inference", "ml_training.inspect_model", "ml_training.cli", *light)
    assert "digit_detector.audio" in ours
    assert not {module: names & HEAVY for module, names in foreign.items() if names & HEAVY}


def test_evaluating_and_looking_for_recordings_load_no_torch() -> None:
    """Importing them, at least: training is imported when cv or loso begins."""
    ours, foreign = loaded_by(
        "ml_training.evaluate", "ml_training.evaluation.command", "ml_training.train", "ml_training.tune",
        "ml_training.data.dataset_loader", "ml_training.tuning.spec",
    )  # fmt: skip
    assert "ml_training.evaluation.protocols" in ours
    assert not {module: names & TRAINS for module, names in foreign.items() if names & TRAINS}


def test_a_prediction_loads_nothing_heavy(tiny_models: Path, tiny_folder: Path) -> None:
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


def test_every_module_has_its_line_in_the_architecture() -> None:
    tree = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## Files")[1].split("## Imports")[0]
    folders, listed = [""] * 9, set()
    for line in tree.splitlines():
        name, depth = line.split()[0] if line.strip() else "", (len(line) - len(line.lstrip())) // 2 - 2
        if name.endswith("/"):
            folders[depth] = name
        elif name.endswith(".py") and depth:
            listed.add("".join(folders[:depth]) + name)
    existing = {str(path.relative_to(ROOT).as_posix()) for path in MODULES.values() if path.name != "__init__.py"}
    assert listed == existing


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("digit_detector/audio.py", "", None),
        ("digit_detector/audio.py", "import ml_training.config", "never the other way round BROKEN"),
        ("ml_training/config.py", "def late() -> None:\n    import ml_training.data", "no circles"),
        ("ml_training/deploy/export.py", "from ml_training.train import main", "imports an entry point BROKEN"),
    ],
)
def test_the_import_contracts_hold_and_notice_a_breach(
    tmp_path: Path, module: str, line: str, broken: str | None
) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=_no_python)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    first = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"  # before the checkout that is installed
    code = f"{first}\nfrom importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == (broken is not None), done.stdout
    if broken is not None:
        assert broken in done.stdout


def _no_python(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not (Path(folder) / name).is_dir() and not name.endswith(".py")]
