"""The recordings of folders: in one order, none twice."""

import contextlib
import os
import random
import tempfile
from pathlib import Path

import pytest

from digit_detector.errors import BatchError
from ml_training.predict.folder import Listing
from ml_training.predict.tables import sort_key

NAMES = [
    "a.wav", "a/1.wav", "a/b/2.FLAC", "a b.wav", "a.b/3.wav", "a-b/4.wav", "ä/5.ogg", "七/ひち.wav", "סבע.wav",
    "سبعة.mp3", "सात.wav", 'quo"te, comma.wav', "line\nbreak.wav", "\r.wav", "'.wav", "e\u0301.wav",
]  # fmt: skip
posix = pytest.mark.skipif(os.name == "nt", reason="names, links and rights of another kind")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty current folder with an empty folder `top` in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "top").mkdir()
    return tmp_path


def touch(*names, top="top"):
    for name in names:
        path = Path(top, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def listed(*named):
    return [recording.name for recording in Listing(named or ("top",)) if recording.error is None]


@posix
def test_names_in_every_script_come_once_and_in_order():
    names = [*NAMES, os.fsdecode(b"\x80\xff.wav")]
    random.Random(0).shuffle(names)
    touch(*names)
    assert listed() == sorted((f"top/{name}" for name in names), key=sort_key)


@posix
def test_hidden_files_others_and_pipes_are_left_out():
    touch("a.wav", "._a.wav", ".cache/b.wav", "notes.txt", "wav", "b.WAV.part")
    os.mkfifo("top/pipe.wav")
    listing = Listing(["top"])
    assert [recording.name for recording in listing] == ["top/a.wav"]
    assert listing.other_files == 4
    with pytest.raises(BatchError, match="is a pipe or a device"):
        Listing(["top/pipe.wav"])


def test_what_is_named_is_taken_whatever_its_name_ends_in(here):
    touch("b/1.wav", "a/2.wav", "seven")
    assert listed("top/seven", "top/b/", "top/a") == ["top/a/2.wav", "top/b/1.wav", "top/seven"]
    assert listed(str(here / "top" / "a")) == [str(here / "top" / "a" / "2.wav")]
    os.chdir("top")
    assert listed(".") == [f".{os.sep}a{os.sep}2.wav", f".{os.sep}b{os.sep}1.wav"]


def test_names_that_overlap_or_do_not_exist_are_refused():
    touch("a/1.wav")
    Path("link").symlink_to("top")
    for named, why in {
        ("nowhere",): r"'nowhere' is no file and no folder \(No such file or directory\)",
        ("",): "'' is no file",
        ("top", "top/a"): "'top/a' lies in 'top', which is named too",
        ("top/a/1.wav", "top"): "'top/a/1.wav' lies in 'top'",
        ("top", "link/a"): "'link/a' lies in 'top'",
    }.items():
        with pytest.raises(BatchError, match=why):
            Listing(named)
    assert listed("top", "link", "top/") == ["link/a/1.wav"]


@posix
def test_links_are_followed_and_no_folder_is_listed_twice():
    touch("a/1.wav", "b/2.wav", ".kept/5.wav")
    touch("3.wav", "deep/4.wav", top="elsewhere")
    for link, target in {
        "top/a/round": "..", "top/b/back": "../a", "top/self": "self", "top/x1": "../elsewhere", "top/hidden": ".kept",
        "top/x2": "../elsewhere", "top/x3": "../elsewhere/deep", "elsewhere/deep/home": "../../top",
        "top/c.wav": "a/1.wav", "top/d.wav": "nowhere", "top/e.wav": "e.wav",
    }.items():  # fmt: skip
        Path(link).symlink_to(target)
    assert listed() == [
        "top/a/1.wav", "top/b/2.wav", "top/c.wav", "top/d.wav", "top/e.wav", "top/hidden/5.wav", "top/x1/3.wav",
        "top/x1/deep/4.wav",
    ]  # fmt: skip


@contextlib.contextmanager
def without_rights():
    """As a user who may not read everything."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@posix
def test_a_folder_that_cannot_be_read_is_an_error_and_the_others_come():
    with tempfile.TemporaryDirectory() as top:  # not tmp_path, which other users may not enter
        os.chmod(top, 0o755)
        touch("a/1.wav", "b/2.wav", "c/3.wav", top=top)
        deep = os.open(top, os.O_RDONLY)
        for _ in range(20):  # longer than paths may be
            os.mkdir("d" * 250, dir_fd=deep)
            inner = os.open("d" * 250, os.O_RDONLY, dir_fd=deep)
            os.close(deep)
            deep = inner
        os.close(deep)
        os.chmod(f"{top}/b", 0)
        with without_rights():
            found = list(Listing([top]))
        os.chmod(f"{top}/b", 0o755)
    assert [one.name.removeprefix(top) for one in found][:3] == ["/a/1.wav", "/b", "/c/3.wav"]
    assert [one.error and one.error.rsplit(": ")[1] for one in found] == [
        None, "Permission denied", None, "File name too long",
    ]  # fmt: skip
