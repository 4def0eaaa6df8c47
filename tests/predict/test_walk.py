"""The walk: one order, nothing twice, nothing held in memory that grows."""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from digit_detector.errors import BatchError
from ml_training.predict import walk
from ml_training.predict.walk import FILE, FOLDER, Walk, kinds_of, place

NAMES = [
    "a.wav", "a/1.wav", "a/b/2.FLAC", "a b.wav", "a.b/3.wav", "a-b/4.wav", "ä/5.ogg", "七/ひち.wav", "סבע.wav",
    "سبعة.mp3", "सात.wav", 'quo"te, comma.wav', "line\nbreak.wav", "\r.wav", "tab\t.wav", "'.wav",
    "e\u0301.wav", "\\udc80.wav",
]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with an empty folder `top` in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "top").mkdir()
    return tmp_path


def touch(*names: str | bytes, top: str = "top") -> None:
    for name in names:
        path = os.path.join(top, os.fsdecode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w"):
            pass


def walked(*named: str) -> list[str]:
    return [found.name for found in Walk(kinds_of(named or ("top",))) if found.fault is None]


def faults(*named: str) -> dict[str, str]:
    return {found.name: found.fault for found in Walk(kinds_of(named or ("top",))) if found.fault is not None}


@pytest.mark.skipif(os.name == "nt", reason="names that Windows knows not")
def test_names_in_every_script_come_once_and_in_order(here: Path) -> None:
    names = [*NAMES, os.fsdecode(b"\x80\xff.wav")]
    for seed in (0, 1):
        random.Random(seed).shuffle(names)
        touch(*names)
    found = walked()
    assert found == sorted((f"top/{name}" for name in names), key=place)
    assert sorted(found) == sorted(f"top/{name}" for name in names)
    assert [name.encode(errors="surrogateescape") for name in found if "\udc80" in name] == [b"top/\x80\xff.wav"]


def test_a_folder_of_any_size_is_listed_in_pieces(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(*(f"{n:03}.wav" for n in range(40)), "007/x.wav", "017.txt")
    whole, counted = walked(), Walk({"top": FOLDER})
    for chunk in (1, 2, 40, 41, 42):
        monkeypatch.setattr(walk, "CHUNK", chunk)
        counted = Walk({"top": FOLDER})
        assert [found.name for found in counted] == whole
        assert counted.left_out == 1


def test_hidden_and_other_files_are_left_out(here: Path) -> None:
    touch("a.wav", "._a.wav", ".cache/b.wav", "notes.txt", "wav", "b.WAV.part")
    searched = Walk({"top": FOLDER})
    assert [found.name for found in searched] == ["top/a.wav"]
    assert searched.left_out == 3


def test_what_is_named_is_taken_whatever_it_is_called(here: Path) -> None:
    touch("b/1.wav", "a/2.wav", "seven")
    assert kinds_of(("top/seven", "top/b/", "top/a")) == {"top/a": FOLDER, "top/b": FOLDER, "top/seven": FILE}
    assert walked("top/seven", "top/b/", "top/a") == ["top/a/2.wav", "top/b/1.wav", "top/seven"]
    assert walked(str(here / "top" / "a")) == [str(here / "top" / "a" / "2.wav")]
    os.chdir("top")
    assert walked(".") == [f".{os.sep}a{os.sep}2.wav", f".{os.sep}b{os.sep}1.wav"]


def test_names_that_cannot_be_meant(here: Path) -> None:
    touch("a/1.wav")
    (here / "link").symlink_to("top")
    for named, told in {
        ("nowhere",): r"'nowhere' is no file and no folder \(No such file or directory\)",
        ("",): "'' is no file",
        ("top", "top/a"): "'top/a' lies in 'top', which is named too",
        ("top/a/1.wav", "top"): "'top/a/1.wav' lies in 'top'",
        ("top", "link/a"): "'link/a' lies in 'top'",
        ("link", "top"): "lies in",
    }.items():
        with pytest.raises(BatchError, match=told):
            kinds_of(named)
    assert kinds_of(("top/gone.wav",), {"top/gone.wav": FILE}) == {"top/gone.wav": FILE}
    with pytest.raises(BatchError, match="no file and no folder"):
        kinds_of(("gone",), {"gone": FOLDER})


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_to_folders_are_followed_once_and_never_in_circles(here: Path) -> None:
    touch("a/1.wav", "b/2.wav", ".kept/5.wav")
    touch("3.wav", "deep/4.wav", "deep/.blobs/6.wav", top="elsewhere")
    for link, target in {
        "top/a/round": "..",
        "top/b/back": "../a",
        "top/self": "self",
        "top/x1": "../elsewhere",
        "top/x2": "../elsewhere",
        "top/x3": "../elsewhere/deep",
        "top/hidden": ".kept",
        "elsewhere/deep/home": "../../top",
        "elsewhere/deep/out": "..",
    }.items():
        (here / link).symlink_to(target)
    assert walked() == ["top/a/1.wav", "top/b/2.wav", "top/hidden/5.wav", "top/x1/3.wav", "top/x1/deep/4.wav"]
    (here / "elsewhere" / "deep" / "out").unlink()
    (here / "top" / "c").symlink_to("..")  # a folder above, come by first
    (here / "top" / "0").symlink_to("../elsewhere/deep")  # a folder within another, come by first
    assert walked() == [
        "top/0/4.wav", "top/a/1.wav", "top/b/2.wav", "top/c/elsewhere/3.wav", "top/hidden/5.wav",
    ]  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_to_files_are_files_and_broken_ones_are_told_when_opened(here: Path) -> None:
    touch("a.wav")
    for link, target in {
        "b.wav": "a.wav",
        "c.wav": "nowhere",
        "d.txt": "a.wav",
        "e.wav": "e.wav",
        "f": "a.wav",
    }.items():
        (here / "top" / link).symlink_to(target)
    searched = Walk({"top": FOLDER})
    assert [found.name for found in searched] == ["top/a.wav", "top/b.wav", "top/c.wav", "top/e.wav"]
    assert searched.left_out == 2


@pytest.mark.skipif(os.name == "nt", reason="has no such files")
def test_a_pipe_or_device_is_a_fault_and_nobody_waits_for_it(here: Path) -> None:
    touch("a.wav")
    os.mkfifo("top/pipe.wav")
    os.mkfifo("top/pipe")
    (here / "top" / "zero.wav").symlink_to("/dev/zero")
    assert walked() == ["top/a.wav"]
    assert set(faults()) == {"top/pipe.wav", "top/zero.wav"}
    assert "is a pipe or a device" in faults()["top/zero.wav"]


@contextlib.contextmanager
def without_rights() -> Iterator[None]:
    """As somebody who may not read everything, if we may."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.name == "nt", reason="rights of another kind")
def test_a_folder_that_cannot_be_read_is_a_fault_and_the_walk_goes_on() -> None:
    with tempfile.TemporaryDirectory() as top:  # not tmp_path, which is not for others to enter
        os.chmod(top, 0o755)
        touch("a/1.wav", "b/2.wav", "c/3.wav", top=top)
        os.chmod(f"{top}/b", 0)
        with without_rights():
            found = list(Walk(kinds_of((top,))))
        os.chmod(f"{top}/b", 0o755)
    assert [f.name.removeprefix(top) for f in found] == ["/a/1.wav", "/b", "/c/3.wav"]
    assert [f.fault for f in found] == [None, f"cannot read the folder {top}/b: Permission denied", None]


@pytest.mark.skipif(os.name == "nt", reason="paths of another length")
def test_a_folder_deeper_than_paths_may_be_long_is_a_fault(here: Path) -> None:
    touch("a.wav", "z.wav")
    depth = os.open("top", os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=depth)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=depth)
        os.close(depth)
        depth = inner
    os.close(depth)
    assert walked() == ["top/a.wav", "top/z.wav"]
    assert [fault.rsplit(": ", 1)[1] for fault in faults().values()] == ["File name too long"]


def test_a_folder_that_vanishes_while_it_is_listed_ends_the_walk(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "CHUNK", 2)
    touch("a/1.wav", "a/2.wav", "a/3.wav")
    walking = iter(Walk({"top": FOLDER}))
    assert [next(walking).name, next(walking).name] == ["top/a/1.wav", "top/a/2.wav"]
    for name in ("1", "2", "3"):
        (here / "top" / "a" / f"{name}.wav").unlink()
    (here / "top" / "a").rmdir()
    with pytest.raises(BatchError, match="could be read before and cannot any more: No such file"):
        next(walking)
