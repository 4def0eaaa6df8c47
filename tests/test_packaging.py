"""The set-up files agree with each other, with what is installed and with what is imported."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path, PurePath

import numpy as np
import pytest
import soundfile
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ml_training

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
LINES = (ROOT / "ml_training_requirements.txt").read_text(encoding="utf-8").splitlines()
PINS = {canonicalize_name(r.name): r for r in map(Requirement, (s for s in LINES if s and s[0] not in "#-"))}
# import name -> distribution name, where they differ
DISTRIBUTIONS = {
    "espeakng_loader": "espeakng-loader",
    "mlflow": "mlflow-skinny",
    "sklearn": "scikit-learn",
    "multipart": "python-multipart",
}
# Extras that only those install who ask for them.
UNPINNED = {"bench", "docs", "executorch", "mlflow", "pocketsphinx", "scale", "whisper"}


def ranges(without: set[str] = UNPINNED) -> list[Requirement]:
    extras = (r for name, extra in EXTRAS.items() if name not in without for r in extra)
    return [Requirement(line) for line in (*PROJECT["dependencies"], *extras)]


def test_base_dependencies_are_what_answering_needs():
    names = [Requirement(line).name for line in PROJECT["dependencies"]]
    assert names == ["numpy", "soundfile", "soxr", "onnxruntime"]


def test_the_licence_notice_names_every_dependency():
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for requirement in ranges(without=set()):
        assert re.search(rf"^    {re.escape(requirement.name)} ", notice, re.MULTILINE), requirement.name


def test_one_version():
    assert re.search(rf"^version: {re.escape(ml_training.__version__)}$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert f"\n## {ml_training.__version__} (" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_requirements_end_with_this_package():
    assert [line for line in LINES if line and not line.startswith("#")][-1] == "-e ."


def test_every_range_is_pinned_exactly_within_itself_and_nothing_else_is():
    for wanted in ranges():
        (pin,) = PINS[canonicalize_name(wanted.name)].specifier
        assert pin.operator == "=="
        assert wanted.specifier.contains(pin.version), wanted
    assert PINS.keys() == {canonicalize_name(wanted.name) for wanted in ranges()}


@pytest.mark.parametrize("wanted", ranges(), ids=lambda r: r.name)
def test_what_is_installed_lies_in_the_range(wanted):
    assert wanted.specifier.contains(version(wanted.name))


def test_every_library_that_is_imported_is_declared():
    imported = set()
    for path in (*(ROOT / "ml_training").rglob("*.py"), *(ROOT / "digit_detector").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).split(".")[0])
    libraries = imported - set(sys.stdlib_module_names) - {"ml_training", "digit_detector"}
    libraries -= {"starlette", "pydantic", "h11", "websockets"}  # parts of fastapi and uvicorn[standard]
    declared = {canonicalize_name(wanted.name) for wanted in ranges(without=set())}
    assert {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in libraries} <= declared


def test_version_is_said_once():
    assert PROJECT["dynamic"] == ["version"]
    assert version("streaming-digit-detector") == ml_training.__version__


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], Path]:
    """The files of the package that git knows, and a folder with a wheel and a source distribution of them."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout.decode().split("\0")
    copy, output = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("built")
    for name in (name for name in names if name and (ROOT / name).is_file()):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    for kind in ("wheel", "sdist"):  # a process each: setuptools changes the one it runs in
        code = f"from setuptools.build_meta import build_{kind}; build_{kind}({str(output)!r})"
        done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    ours = ("ml_training/", "digit_detector/")
    return {name for name in names if name.startswith(ours) and (ROOT / name).is_file()}, output


@pytest.fixture(scope="module")
def built(packages: tuple[set[str], Path]) -> tuple[set[str], set[str], set[str]]:
    """The files of the package that git knows, and those in its wheel and its source distribution."""
    known, output = packages
    with zipfile.ZipFile(next(output.glob("*.whl"))) as wheel, tarfile.open(next(output.glob("*.tar.gz"))) as sdist:
        packed, source = set(wheel.namelist()), {name.partition("/")[2] for name in sdist.getnames()}
    return known, packed, source


def test_every_file_of_the_package_is_in_the_wheel_and_in_the_source_distribution(built):
    known, wheel, sdist = built
    assert {
        "digit_detector/pretrained/evaluation_clips.csv",
        "ml_training/py.typed",
        "digit_detector/py.typed",
    } <= known
    assert known - wheel == set()
    assert known - sdist == set()
    assert {"pyproject.toml", "README.md", "LICENSE", "NOTICE"} <= sdist


def test_the_wheel_holds_the_package_and_its_licences_alone(built):
    known, wheel, _ = built
    rest = {name.partition("/")[2] for name in wheel - known}
    told = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE", "licenses/NOTICE"}
    assert rest == told


@pytest.fixture(scope="module")
def alone(packages: tuple[set[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel and what it asks for, and nothing else; not even pip."""
    folder = tmp_path_factory.mktemp("alone")
    venv.create(folder / "venv", with_pip=False, symlinks=sys.platform != "win32")
    site = next((folder / "venv").rglob("site-packages"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", str(site)]
    done = subprocess.run(
        [*command, str(next(packages[1].glob("*.whl")))], capture_output=True, text=True, timeout=600
    )  # fmt: skip
    if done.returncode and re.search("No matching distribution|ConnectionError|connection broken", done.stderr):
        pytest.skip(f"no package index can be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return folder


def test_the_wheel_alone_answers_in_190_mb_and_without_torch(alone: Path, tmp_path: Path) -> None:
    python = alone / "venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    site = next((alone / "venv").rglob("site-packages"))
    assert not list(site.glob("torch*"))
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 190e6

    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "my.wav", 0.1 * rng.standard_normal(8000), 8000)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(python), "-m", "ml_training.cli", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)

    for flags in ([], ["--pipeline", "mfcc", "--precision", "int8"]):
        done = run("predict", "my.wav", "--json", *flags)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["is_digit"] is False
    shown = run("predict", "my.wav")
    assert shown.stderr == "answered by the mel_cnn that ships\n"
    assert run("predict", "--example").stdout.startswith("7  ")
    refused = run("train")
    assert refused.returncode == 1
    assert "[train]" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["mfcc.onnx", "mfcc.md", "evaluation_clips.csv", "scores.json", "licence.txt"])
def test_whatever_ships_with_a_model_is_packed(name):
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["digit_detector"]
    assert any(PurePath("pretrained", name).match(pattern) for pattern in patterns)


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make here")
@pytest.mark.skipif(sys.platform == "win32", reason="on Windows pip is used as it is")
def test_make_explains_itself_and_refuses_an_old_python(tmp_path):
    def make(*words):
        return subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, timeout=60)

    shown = make("help").stdout
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"train", "test", "test-all", "check", "clean", "help"} <= set(targets)
    assert all(f"make {target} " in shown for target in targets)
    old = tmp_path / "python-of-old"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.1 && exit 0\nexit 1\n')
    old.chmod(0o755)
    refused = make(f"VENV={tmp_path / 'venv'}", f"PYTHON={old}", "test")
    assert refused.returncode != 0
    assert "Python 3.11 or newer is needed" in refused.stderr
    assert "Python 3.8.1" in refused.stderr
    assert not (tmp_path / "venv").exists()
