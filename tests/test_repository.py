"""The repository as a whole: links lead somewhere, pictures are light, nothing lies here that must not."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from digit_detector.audio import AUDIO_SUFFIXES
from digit_detector.examples import DIGITS, example_recording
from digit_detector.labels import FILE_PRECISIONS, PIPELINES
from digit_detector.model_file import onnx_name
from digit_detector.spotter_file import FILE

ROOT = Path(__file__).resolve().parents[1]
VENDORED = ROOT / "digit_detector" / "webapp" / "static" / "vendor"  # by others, as its manifests say
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSION = version("streaming-digit-detector")
# Put together here, so that this file does not hold what it looks for.
MACHINES = (r"/(?:home|Users|root|work)/\w", r"[A-Z]:\\Users\\\w", r"/tmp/\w+\.\w{6,}")
HOSTS = tuple(re.escape(".".join(name)) for name in (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org")))
ASSISTANTS = tuple(rf"\b{a}{b}\b" for a, b in (("cla", "ude"), ("anth", "ropic"), ("chat", "gpt"), ("co", "pilot")))
UNFINISHED = tuple(rf"\b{a}{b}\b" for a, b in (("TO", "DO"), ("FIX", "ME"), ("X", "XX")))


def tracked() -> list[Path]:
    """The files of the repository."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout.decode().split("\0")
    return [path for name in names if name and (path := ROOT / name).is_file()]


def texts() -> list[tuple[Path, str]]:
    binary = (".png", ".onnx", ".flac")
    ours = (path for path in tracked() if path.suffix not in binary and not path.is_relative_to(VENDORED))
    return [(path, path.read_text(encoding="utf-8")) for path in ours]


def documents() -> list[Path]:
    return [ROOT / name for name in sorted(p.relative_to(ROOT) for p in tracked() if p.suffix == ".md")]


def anchors(path: Path) -> set[str]:
    """The names that headings of a Markdown file can be linked by."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_link_in_the_documents_leads_somewhere():
    found = 0
    for document in documents():
        for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
            if target.startswith("https://"):
                continue
            place, _, anchor = target.partition("#")
            path = (document.parent / place).resolve() if place else document
            assert path.exists(), f"{document.name}: {target}"
            assert path.is_relative_to(ROOT), f"{document.name}: {target}"
            assert not anchor or anchor in anchors(path), f"{document.name}: {target}"
            found += 1
    assert found > 20


def test_what_a_project_has_is_here():
    for name in ("README.md", "LICENSE", "NOTICE", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff"):
        assert (ROOT / name).stat().st_size > 500, name
    assert "MIT License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_version_is_the_same_everywhere():
    assert re.search(rf"^version: {re.escape(VERSION)}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    first = re.search(r"^## (?!Unreleased)(\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert first
    assert first[1] == VERSION


def test_notice_names_every_dependency():
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    extras = PROJECT["optional-dependencies"]
    for requirement in (*PROJECT["dependencies"], *(line for extra in extras.values() for line in extra)):
        name = re.match(r"[\w.-]+", requirement)
        assert name
        assert re.search(rf"^    {re.escape(name[0])} ", notice, re.MULTILINE), name[0]
    assert "CC BY-SA 4.0" in notice
    assert "GPL-3.0" in notice


def test_pictures_are_there_and_light():
    pictures = sorted((ROOT / "docs" / "images").iterdir())
    assert pictures
    for path in pictures:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n"), path
        assert len(content) < 400_000, path
        assert struct.unpack(">I", content[16:20])[0] >= 1000, "wide enough to read"
        assert any(f"images/{path.name}" in d.read_text(encoding="utf-8") for d in documents()), "a document shows it"


def test_no_recordings_and_no_trained_models_lie_in_the_repository_but_those_that_ship():
    shipped = [
        ROOT / "digit_detector" / "pretrained" / onnx_name(p, kind) for p in PIPELINES for kind in FILE_PRECISIONS
    ]
    shipped.append(ROOT / "digit_detector" / "pretrained" / FILE)
    samples = [example_recording(name) for name in DIGITS]
    for path in tracked():
        if path in shipped:
            assert path.stat().st_size < 1_000_000, path
            continue
        if path in samples:  # by espeak-ng, see NOTICE
            assert path.stat().st_size < 100_000, path
            continue
        if path.is_relative_to(VENDORED) and path.suffix in (".wasm", ".js"):
            assert path.stat().st_size < 16_000_000, path
            continue
        assert path.suffix.lower() not in (*AUDIO_SUFFIXES, ".onnx", ".pt", ".pkl", ".npz", ".zip", ".gz"), path
        assert path.stat().st_size < 500_000, path


@pytest.mark.parametrize("pattern", [*MACHINES, *HOSTS, *ASSISTANTS, *UNFINISHED])
def test_nothing_names_a_machine_a_mirror_or_what_is_left_to_do(pattern):
    flags = 0 if pattern in (*MACHINES, *UNFINISHED) else re.IGNORECASE
    for path, text in texts():
        match = re.search(pattern, text, flags)
        assert not match or path == Path(__file__), f"{path}: {match and match[0]}"


def test_recordings_beside_the_checkout_are_named_by_the_check_alone():
    there = "shared" + "/data"
    assert [path.relative_to(ROOT).as_posix() for path, text in texts() if there in text] == [".ci/run"]


def test_documents_are_written_in_one_spelling_and_without_pictograms():
    american = re.compile(r"(?i)\b(?:colors?|behaviors?|centered|analyz\w+|neighbors?|recogniz\w+|synthesiz\w+)\b")
    for path in [*documents(), ROOT / "NOTICE"]:
        text = re.sub(r"```.*?```|`[^`]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not american.search(text), f"{path.name}: {american.search(text)}"
        assert not re.search("[\U0001f300-\U0001faff\u2600-\u27bf]", text), path.name
