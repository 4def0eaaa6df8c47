"""How a download shows itself, and where it stops."""

from __future__ import annotations

import io
import sys

import pytest

from digit_detector.errors import DownloadError
from ml_training.data import download


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_when_the_output_is_no_terminal(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_LINE_SECONDS", 0.0)
    server.answers["/a"] = bytes(300_000)
    lines: list[str] = []
    download.fetch(server.url("/a"), tmp_path / "a", 1 << 20, "recordings", lines.append)
    assert (tmp_path / "a").read_bytes() == bytes(300_000)
    assert lines[0] == "recordings: 0.1 of 0.3 MB"
    assert lines[-1] == "recordings: 0.3 of 0.3 MB"


def test_a_live_bar_on_a_terminal(server, tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    server.answers["/a"] = bytes(300_000)
    lines: list[str] = []
    download.fetch(server.url("/a"), tmp_path / "a", 1 << 20, "recordings", lines.append)
    assert "recordings" in terminal.getvalue()
    assert "300.0/300.0 kB" in terminal.getvalue()
    assert lines == []


def test_an_answer_of_unknown_length_is_shown_too(server, tmp_path):
    def unsized(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(bytes(100_000))

    server.answers["/a"] = unsized
    seen: list[tuple[int, int]] = []
    download.fetch(server.url("/a"), tmp_path / "a", 1 << 20, "recordings", print, lambda *args: seen.append(args))
    assert [total for _, total in seen] == [0] * len(seen)
    assert seen[-1][0] >= 100_000


def test_an_answer_without_end_is_stopped(server, tmp_path):
    server.answers["/a"] = bytes(3 << 20)
    with pytest.raises(DownloadError, match="sends more than 1 MB"):
        download.fetch(server.url("/a"), tmp_path / "a", 1 << 20, "recordings", print)


def test_an_unreachable_server_is_said_in_few_words(nobody, tmp_path):
    with pytest.raises(DownloadError, match=r"^http://\S+ cannot be reached: \D*\[(Errno|WinError) \d+\][^()]*$"):
        download.fetch(nobody, tmp_path / "a", 1 << 20, "recordings", print)


def test_an_unknown_host_is_said_in_few_words():
    told = ConnectionError(
        "HTTPSConnectionPool(host='host', port=443): Max retries exceeded with url: /a (Caused by NameResolutionError("
        "\"HTTPSConnection(host='host', port=443): Failed to resolve 'host' ([Errno -2] Name or service not known)\"))"
    )
    assert download._reason(told) == "Failed to resolve 'host' ([Errno -2] Name or service not known)"
