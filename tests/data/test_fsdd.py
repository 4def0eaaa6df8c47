"""FSDD is recognised by its bytes; a download that fails in any way leaves nothing behind."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import time
import zipfile
from pathlib import Path

import pytest

from digit_detector.errors import DataError, DownloadError
from ml_training.data import fsdd


def nothing_left(cache: Path) -> bool:
    return not cache.exists()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


# --- hash ----------------------------------------------------------------------------------------


def test_blob_hash_is_gits():
    assert fsdd.blob_hash(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert fsdd.blob_hash(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_tree_hash_is_gits(tmp_path, recordings):
    """The same folder, hashed by git itself; theo's files are executable in FSDD's tag."""
    repository = tmp_path / "repository"
    (repository / "recordings").mkdir(parents=True)
    for name, content in recordings.items():
        path = repository / "recordings" / name
        path.write_bytes(content)
        path.chmod(0o755 if "_theo_" in name else 0o644)

    def git(*words: str) -> str:
        try:
            done = subprocess.run(["git", *words], cwd=repository, capture_output=True, text=True, check=True)
        except FileNotFoundError:
            pytest.skip("needs git")
        return done.stdout.strip()

    git("init", "--quiet")
    git("-c", "core.autocrlf=false", "-c", "core.fileMode=true", "add", "recordings")
    assert fsdd.content_hash(recordings) == git("write-tree", "--prefix=recordings/")
    assert fsdd.folder_hash(repository / "recordings") == fsdd.content_hash(recordings)


def test_one_changed_byte_changes_the_hash(recordings):
    name = next(iter(recordings))
    altered = {**recordings, name: recordings[name][:-1] + b"\x55"}
    assert fsdd.content_hash(altered) != fsdd.content_hash(recordings)


def test_other_files_beside_the_recordings_do_not_count(tmp_path, recordings):
    for name, content in recordings.items():
        (tmp_path / name).write_bytes(content)
    for name in ("SOURCE.txt", ".DS_Store", "._0_anna_0.wav"):
        (tmp_path / name).write_bytes(b"x")
    assert fsdd.folder_hash(tmp_path) == fsdd.content_hash(recordings)


@pytest.mark.real_data
def test_real_fsdd_has_the_pinned_hash(fsdd_dir):
    assert fsdd.folder_hash(fsdd.recordings_folder(fsdd_dir)) == fsdd.TREE_HASH


# --- archives ------------------------------------------------------------------------------------


def test_reads_tar_and_zip(tmp_path, recordings, tar):
    (tmp_path / "fsdd.tar.gz").write_bytes(tar(recordings))
    with zipfile.ZipFile(tmp_path / "fsdd.zip", "w") as archive:
        archive.writestr("fsdd-1.0.10/README.md", "no recording")
        for name, content in recordings.items():
            archive.writestr(f"fsdd-1.0.10/recordings/{name}", content)
    assert fsdd.read_archive(tmp_path / "fsdd.tar.gz") == recordings
    assert fsdd.read_archive(tmp_path / "fsdd.zip") == recordings


def test_names_that_lead_elsewhere_are_passed_over(tmp_path, recordings, tar):
    names = ("../../../evil.wav", "/etc/evil.wav", "..\\evil.wav", "../0_evil_0.wav", "deep/0_evil_0.wav", "evil.txt")
    (tmp_path / "evil.tar.gz").write_bytes(tar({**recordings, **dict.fromkeys(names, b"evil")}))
    assert fsdd.read_archive(tmp_path / "evil.tar.gz") == recordings


def test_a_zip_slip_download_writes_nothing_outside(server, cache, recordings, tar):
    """Folders named .. lead nowhere: only the last part of a recording's name is used."""
    content = b"".join(recordings.values())
    before = sorted(cache.parent.rglob("*"))
    for folder in ("../../recordings/", "/recordings/", "x/recordings/../../../"):
        server.answers["/fsdd.tar.gz"] = tar({"0_evil_0.wav": content, "../0_evil_1.wav": content}, folder)
        with pytest.raises(DownloadError, match="is not FSDD"):
            fsdd.download(server.url("/fsdd.tar.gz"), cache, print)
        assert sorted(cache.parent.rglob("*")) == before


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b\x08\x00" + bytes(40)])
def test_no_archive_is_a_clear_error(tmp_path, content):
    (tmp_path / "fsdd.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"cut off, damaged, or no tar or zip archive"):
        fsdd.read_archive(tmp_path / "fsdd.tar.gz")


def test_an_archive_cut_off_anywhere_is_an_error_or_has_another_hash(tmp_path, recordings, tar):
    whole = tar(recordings)
    for tenths in range(10):
        (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) * tenths // 10])
        with contextlib.suppress(DataError):
            assert fsdd.content_hash(fsdd.read_archive(tmp_path / "cut.tar.gz")) != fsdd.content_hash(recordings)


def test_an_encrypted_or_lying_zip_is_an_error(tmp_path, recordings):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("recordings/0_anna_0.wav", b"content")
    flags = bytearray(stream.getvalue())
    flags[6] |= 1  # "encrypted" in the local header
    flags[flags.index(b"PK\x01\x02") + 8] |= 1  # and in the directory
    (tmp_path / "secret.zip").write_bytes(flags)
    with pytest.raises(DataError, match="cannot be unpacked"):
        fsdd.read_archive(tmp_path / "secret.zip")


def test_an_archive_that_unpacks_to_too_much_is_an_error(tmp_path, tar, monkeypatch):
    monkeypatch.setattr(fsdd, "_MAX_TOTAL_BYTES", 10_000_000)
    (tmp_path / "bomb.tar.gz").write_bytes(tar({"README": bytes(11_000_000)}, folder=""))
    assert (tmp_path / "bomb.tar.gz").stat().st_size < 100_000
    with pytest.raises(DataError, match="unpacks to more"):
        fsdd.read_archive(tmp_path / "bomb.tar.gz")


# --- finding -------------------------------------------------------------------------------------


def test_the_flag_wins_over_the_variable(tmp_path, monkeypatch):
    assert fsdd.chosen_path(None) is None
    monkeypatch.setenv("DIGIT_DATA_DIR", str(tmp_path))
    assert fsdd.chosen_path(None) == tmp_path
    assert fsdd.chosen_path(str(tmp_path.parent)) == tmp_path.parent


def test_a_chosen_place_where_nothing_is_names_who_chose_it(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"--data_dir is .*nowhere"):
        fsdd.chosen_path(str(tmp_path / "nowhere"))
    monkeypatch.setenv("DIGIT_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"\$DIGIT_DATA_DIR is .*nowhere"):
        fsdd.chosen_path(None)


def test_the_cache_is_the_users(home):
    assert fsdd.cache_folder().is_relative_to(home)


def test_obtain_downloads_once(server, recordings, tar, monkeypatch):
    monkeypatch.setattr(fsdd, "TREE_HASH", fsdd.content_hash(recordings))
    server.answers["/fsdd.tar.gz"] = tar(recordings)
    monkeypatch.setenv("DIGIT_DATA_URL", server.url("/fsdd.tar.gz"))
    lines: list[str] = []
    first = fsdd.obtain(None, lines.append)
    again = fsdd.obtain(None, lines.append)
    assert first == again
    assert server.requests == ["/fsdd.tar.gz"]
    # A cache that was altered since does not count, and is replaced.
    (first / "0_anna_0.wav").write_bytes(b"altered")
    assert fsdd.folder_hash(fsdd.obtain(None, lines.append)) == fsdd.TREE_HASH
    assert len(server.requests) == 2
    assert any("not FSDD v1.0.10 any more" in line for line in lines)


# --- download ------------------------------------------------------------------------------------


def test_a_good_download_is_kept_whole(server, cache, recordings, tar):
    server.answers["/fsdd.tar.gz"] = tar(recordings)
    lines: list[str] = []
    seen: list[tuple[int, int]] = []
    folder = fsdd.download(
        server.url("/fsdd.tar.gz"), cache, lines.append, lambda done, total: seen.append((done, total)),
        expected=fsdd.content_hash(recordings),
    )  # fmt: skip
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == recordings
    assert [path.name for path in cache.iterdir()] == ["fsdd-v1.0.10"]
    assert seen[-1] == (len(tar(recordings)),) * 2
    assert "complete and unaltered" in lines[-1]


def test_an_altered_download_leaves_nothing(server, cache, recordings, tar):
    server.answers["/fsdd.tar.gz"] = tar({**recordings, "0_anna_0.wav": recordings["1_anna_0.wav"]})
    with pytest.raises(DownloadError, match=r"is not FSDD.*tree hash.*expected.*Nothing was kept.*--data_dir"):
        fsdd.download(server.url("/fsdd.tar.gz"), cache, print, expected=fsdd.content_hash(recordings))
    assert nothing_left(cache)


def test_a_web_page_instead_of_the_archive_leaves_nothing(server, cache):
    server.answers["/fsdd.tar.gz"] = b"<html>please log in to this hotel's network</html>"
    with pytest.raises(DownloadError, match="no tar or zip archive"):
        fsdd.download(server.url("/fsdd.tar.gz"), cache, print)
    assert nothing_left(cache)


def test_a_download_cut_off_leaves_nothing(server, cache, recordings, tar):
    whole = tar({name: os.urandom(20_000) for name in recordings})

    def cut_off(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(whole)))
        handler.end_headers()
        handler.wfile.write(whole[: len(whole) // 2])

    server.answers["/fsdd.tar.gz"] = cut_off
    with pytest.raises(DownloadError, match=r"was cut off after 0\.\d of 1\.2 MB"):
        fsdd.download(server.url("/fsdd.tar.gz"), cache, print)
    assert nothing_left(cache)


def test_a_cut_that_the_server_does_not_show_is_found_in_the_archive(server, cache, recordings, tar):
    whole = tar(recordings)

    def cut_off(handler):
        handler.send_response(200)  # no length: the end of the connection is the end of the answer
        handler.end_headers()
        handler.wfile.write(whole[: len(whole) // 2])

    server.answers["/fsdd.tar.gz"] = cut_off
    with pytest.raises(DownloadError, match=r"is cut off, damaged"):
        fsdd.download(server.url("/fsdd.tar.gz"), cache, print, expected=fsdd.content_hash(recordings))
    assert nothing_left(cache)


@pytest.mark.parametrize(("status", "words"), [(403, "403 Forbidden"), (404, "404 Not Found"), (500, "500 Internal")])
def test_a_refused_download_leaves_nothing(server, cache, status, words):
    server.answers["/fsdd.tar.gz"] = status
    with pytest.raises(DownloadError, match=f"was refused: {words}"):
        fsdd.download(server.url("/fsdd.tar.gz"), cache, print)
    assert nothing_left(cache)


def test_a_length_that_is_no_number_leaves_nothing(server, cache):
    def confuse(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "abc")
        handler.end_headers()
        handler.wfile.write(b"x")

    server.answers["/fsdd.tar.gz"] = confuse
    with pytest.raises(DownloadError, match="header that makes no sense"):
        fsdd.download(server.url("/fsdd.tar.gz"), cache, print)
    assert nothing_left(cache)


@pytest.mark.parametrize("address", [None, "nonsense", "file:///etc/passwd", "http://"])
def test_an_address_without_an_answer_fails_fast_and_leaves_nothing(cache, address, nobody):
    start = time.monotonic()
    with pytest.raises(DownloadError, match=r"cannot be reached.*Nothing was kept"):
        fsdd.download(address or nobody, cache, print)
    assert time.monotonic() - start < 5
    assert nothing_left(cache)


def test_a_server_that_falls_silent_leaves_nothing(server, cache, monkeypatch):
    monkeypatch.setattr(fsdd, "READ_SECONDS", 0.2)
    server.answers["/fsdd.tar.gz"] = lambda handler: time.sleep(1)
    with pytest.raises(DownloadError, match=r"cannot be reached: Read timed out"):
        fsdd.download(server.url("/fsdd.tar.gz"), cache, print)
    assert nothing_left(cache)


def test_ctrl_c_leaves_nothing(server, cache, recordings, tar):
    server.answers["/fsdd.tar.gz"] = tar(recordings)

    def interrupt(done: int, total: int) -> None:
        assert any(cache.rglob("archive"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fsdd.download(server.url("/fsdd.tar.gz"), cache, print, interrupt)
    assert nothing_left(cache)


def test_a_cache_that_cannot_be_written_is_a_clear_error(server, tmp_path, recordings, tar):
    server.answers["/fsdd.tar.gz"] = tar(recordings)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DownloadError, match="cannot keep FSDD"):
        fsdd.download(server.url("/fsdd.tar.gz"), tmp_path / "file" / "cache", print)


def test_what_a_killed_download_left_is_removed_by_a_later_one(server, cache, recordings, tar):
    server.answers["/fsdd.tar.gz"] = tar(recordings)
    for name, age in ((".partial-old", 2 * 24 * 3600), (".partial-running", 60)):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (time.time() - age,) * 2)
    fsdd.download(server.url("/fsdd.tar.gz"), cache, print, expected=fsdd.content_hash(recordings))
    assert sorted(path.name for path in cache.iterdir()) == [".partial-running", "fsdd-v1.0.10"]


@pytest.mark.real_data
def test_real_fsdd_comes_through_a_download(server, cache, fsdd_dir, tar):
    files = {path.name: path.read_bytes() for path in fsdd.recordings_folder(fsdd_dir).glob("*.wav")}
    server.answers["/v1.0.10.tar.gz"] = tar(files)
    folder = fsdd.download(server.url("/v1.0.10.tar.gz"), cache, print)
    assert fsdd.folder_hash(folder) == fsdd.TREE_HASH
