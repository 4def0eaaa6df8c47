"""FSDD is recognised by its bytes; a download that fails in any way leaves nothing behind."""

import io
import os
import subprocess
import sys
import time
import zipfile

import pytest

from digit_detector.errors import DataError, DownloadError
from ml_training.data import fsdd


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


# --- hash ----------------------------------------------------------------------------------------


def test_hashes_are_gits(tmp_path, recordings):
    """The same folder, hashed by git itself; theo's files are executable in FSDD's tag."""
    assert fsdd.blob_hash(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"
    folder = tmp_path / "repository" / "recordings"
    folder.mkdir(parents=True)
    for name, content in recordings.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o755 if "_theo_" in name else 0o644)

    def git(*words):
        try:
            done = subprocess.run(["git", *words], cwd=folder.parent, capture_output=True, text=True, check=True)
        except FileNotFoundError:
            pytest.skip("needs git")
        return done.stdout.strip()

    git("init", "--quiet")
    git("-c", "core.autocrlf=false", "-c", "core.fileMode=true", "add", "recordings")
    assert fsdd.content_hash(recordings) == git("write-tree", "--prefix=recordings/")
    for name in ("SOURCE.txt", ".DS_Store", "._0_anna_0.wav"):
        (folder / name).write_bytes(b"x")
    assert fsdd.folder_hash(folder) == fsdd.folder_hash(folder.parent) == fsdd.content_hash(recordings)
    name = next(iter(recordings))
    assert fsdd.content_hash({**recordings, name: recordings[name][:-1] + b"\x55"}) != fsdd.content_hash(recordings)


@pytest.mark.real_data
def test_real_fsdd_has_the_pinned_hash_and_comes_through_a_download(server, cache, fsdd_dir, tar):
    assert fsdd.folder_hash(fsdd_dir) == fsdd.TREE_HASH
    files = {path.name: path.read_bytes() for path in fsdd.recordings_folder(fsdd_dir).glob("*.wav")}
    server.answers["/v1.0.10.tar.gz"] = tar(files)
    assert fsdd.folder_hash(fsdd.download(server.url("/v1.0.10.tar.gz"), cache, print)) == fsdd.TREE_HASH


# --- archives ------------------------------------------------------------------------------------


def test_reads_the_recordings_of_tar_and_zip_alone(tmp_path, recordings, tar):
    names = ("../../../evil.wav", "/etc/evil.wav", "..\\evil.wav", "../0_evil_0.wav", "deep/0_evil_0.wav", "evil.txt")
    (tmp_path / "fsdd.tar.gz").write_bytes(tar({**recordings, **dict.fromkeys(names, b"evil")}))
    with zipfile.ZipFile(tmp_path / "fsdd.zip", "w") as archive:
        archive.writestr("fsdd-1.0.10/README.md", "no recording")
        for name, content in recordings.items():
            archive.writestr(f"fsdd-1.0.10/recordings/{name}", content)
    assert fsdd.read_archive(tmp_path / "fsdd.tar.gz") == fsdd.read_archive(tmp_path / "fsdd.zip") == recordings


def encrypted_zip():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("recordings/0_anna_0.wav", b"content")
    flags = bytearray(stream.getvalue())
    flags[6] |= 1  # "encrypted" in the local header
    flags[flags.index(b"PK\x01\x02") + 8] |= 1  # and in the directory
    return bytes(flags)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        *((content, "cut off, damaged, or no tar or zip archive")
          for content in (b"", b"no archive", b"\x1f\x8b\x08\x00" + bytes(40))),
        (encrypted_zip(), "cannot be unpacked"), (None, "unpacks to more"),
    ],
    ids=["empty", "text", "gzip", "encrypted", "bomb"],
)  # fmt: skip
def test_archives_that_cannot_be_used(tmp_path, tar, monkeypatch, content, reason):
    monkeypatch.setattr(fsdd, "_MAX_TOTAL_BYTES", 10_000_000)
    (tmp_path / "fsdd.tar.gz").write_bytes(
        tar({"README": bytes(11_000_000)}, folder="") if content is None else content
    )
    with pytest.raises(DataError, match=reason) as caught:
        fsdd.read_archive(tmp_path / "fsdd.tar.gz")
    assert "\n" not in str(caught.value)


# --- finding -------------------------------------------------------------------------------------


def test_obtain_downloads_once_into_the_users_cache(server, recordings, tar, monkeypatch, home):
    monkeypatch.setattr(fsdd, "TREE_HASH", fsdd.content_hash(recordings))
    server.answers["/fsdd.tar.gz"] = tar(recordings)
    monkeypatch.setenv("DIGIT_DATA_URL", server.url("/fsdd.tar.gz"))
    lines: list[str] = []
    first = fsdd.obtain(None, lines.append)
    assert first.is_relative_to(home)
    assert fsdd.obtain(None, lines.append) == first
    assert server.requests == ["/fsdd.tar.gz"]
    (first / "0_anna_0.wav").write_bytes(b"altered")  # does not count, and is replaced
    assert fsdd.folder_hash(fsdd.obtain(None, lines.append)) == fsdd.TREE_HASH
    assert any("not FSDD v1.0.10 any more" in line for line in lines)


# --- download ------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("terminal", [False, True])
def test_a_good_download_is_kept_whole_and_shown_on_a_terminal(server, cache, recordings, tar, monkeypatch, terminal):
    shown = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    server.answers["/fsdd.tar.gz"] = tar(recordings)
    for name, age in ((".partial-old", 2 * 24 * 3600), (".partial-running", 60)):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (time.time() - age,) * 2)
    lines: list[str] = []
    folder = fsdd.download(server.url("/fsdd.tar.gz"), cache, lines.append, expected=fsdd.content_hash(recordings))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == recordings
    assert sorted(path.name for path in cache.iterdir()) == [".partial-running", "fsdd-v1.0.10"]
    assert "complete and unaltered" in lines[-1]
    assert ("kB" in shown.getvalue()) == terminal


def test_progress_is_passed_on_and_ctrl_c_leaves_nothing(server, cache, recordings, tar):
    server.answers["/fsdd.tar.gz"] = tar(recordings)
    seen: list[tuple[int, int]] = []
    fsdd.download(server.url("/fsdd.tar.gz"), cache / "good", print, lambda *step: seen.append(step),
                  expected=fsdd.content_hash(recordings))  # fmt: skip
    assert seen[-1] == (len(tar(recordings)),) * 2

    def interrupt(done, total):
        assert any((cache / "bad").rglob("archive"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fsdd.download(server.url("/fsdd.tar.gz"), cache / "bad", print, interrupt)
    assert not (cache / "bad").exists()


def answer(*headers, content):
    """An answer that ends where the connection does, whatever its headers promise."""

    def send(handler):
        handler.send_response(200)
        for name, value in headers:
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    return send


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("altered", r"is not FSDD.*tree hash.*expected.*Nothing was kept.*--data_dir"),
        ("web page", "no tar or zip archive"), ("cut off", r"was cut off after 0\.\d of 1\.2 MB"),
        ("cut off silently", "is cut off, damaged"), ("403", "was refused: 403 Forbidden"),
        ("404", "was refused: 404 Not Found"), ("500", "was refused: 500 Internal"),
        ("length", "header that makes no sense"), ("endless", "sends more than 1 MB"),
        ("silent", "cannot be reached: Read timed out"), ("zip slip", "is not FSDD"),
    ],
)  # fmt: skip
def test_a_bad_download_leaves_nothing(server, cache, recordings, tar, monkeypatch, how, reason):
    large = tar({name: os.urandom(20_000) for name in recordings})
    whole = tar(recordings)
    server.answers["/fsdd.tar.gz"] = {
        "altered": tar({**recordings, "0_anna_0.wav": recordings["1_anna_0.wav"]}),
        "web page": b"<html>please log in to this hotel's network</html>",
        "cut off": answer(("Content-Length", str(len(large))), content=large[: len(large) // 2]),
        "cut off silently": answer(content=whole[: len(whole) // 2]),
        "length": answer(("Content-Length", "abc"), content=b"x"),
        "endless": bytes(3 << 20),
        "silent": lambda handler: time.sleep(1),
        "zip slip": tar({"0_evil_0.wav": whole, "../0_evil_1.wav": whole}, "../../recordings/"),
    }.get(how) or int(how)
    if how == "endless":
        monkeypatch.setattr(fsdd, "_MAX_TOTAL_BYTES", 1 << 20)
    if how == "silent":
        monkeypatch.setattr(fsdd, "READ_SECONDS", 0.2)
    before = sorted(cache.parent.rglob("*"))
    with pytest.raises(DownloadError, match=reason) as caught:
        fsdd.download(server.url("/fsdd.tar.gz"), cache, print, expected=fsdd.content_hash(recordings))
    assert "\n" not in str(caught.value)
    assert sorted(cache.parent.rglob("*")) == before


@pytest.mark.parametrize("address", [None, "nonsense", "file:///etc/passwd", "http://"])
def test_an_address_without_an_answer_leaves_nothing(cache, address, no_server):
    with pytest.raises(DownloadError, match=r"cannot be reached: [^()]*\. Nothing was kept"):
        fsdd.download(address or no_server, cache, print)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_a_clear_error(server, tmp_path, recordings, tar):
    server.answers["/fsdd.tar.gz"] = tar(recordings)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DownloadError, match="cannot keep FSDD"):
        fsdd.download(server.url("/fsdd.tar.gz"), tmp_path / "file" / "cache", print)
