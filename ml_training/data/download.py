"""One file over HTTP, with a bar on a terminal and plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from digit_detector.errors import DownloadError, MissingExtraError

Progress = Callable[[int, int], None]  # bytes so far, bytes in all or 0 when the server does not say

CONNECT_SECONDS = 4.0  # a network that is down should be noticed before anyone grows impatient
READ_SECONDS = 20.0  # between two pieces of the answer
_CHUNK = 1 << 16
_LINE_SECONDS = 2.0


def fetch(
    url: str,
    path: Path,
    max_bytes: int,
    title: str,
    report: Callable[[str], None],
    progress: Progress | None = None,
) -> None:
    """Download `url` to the file `path`. Raises DownloadError; what it wrote until then is the caller's to remove."""
    try:
        import pooch
        from requests import exceptions
    except ImportError:
        raise MissingExtraError("downloading recordings", "train") from None
    with contextlib.nullcontext(progress) if progress else _display(title, report) as show:
        meter = _Meter(url, max_bytes, show)
        load = pooch.HTTPDownloader(progressbar=meter, chunk_size=_CHUNK, timeout=(CONNECT_SECONDS, READ_SECONDS))
        try:
            load(url, str(path), None)
        except exceptions.HTTPError as error:
            answer = error.response
            status = str(error) if answer is None else f"{answer.status_code} {answer.reason}"
            raise DownloadError(f"{url} was refused: {status}") from error
        except exceptions.RequestException as error:
            if meter.done:
                raise DownloadError(f"{url} was cut off after {_megabytes(meter.done, meter.total)}") from error
            raise DownloadError(f"{url} cannot be reached: {_reason(error)}") from error
        except ValueError as error:  # pooch reads the stated length without asking whether it is a number
            raise DownloadError(f"{url} answers with a header that makes no sense: {error}") from error


class _Meter:
    """What pooch asks of a progress bar; it also stops an answer without end."""

    def __init__(self, url: str, max_bytes: int, show: Progress) -> None:
        self.total = 0  # set by pooch
        self.done = 0
        self._url = url
        self._max_bytes = max_bytes
        self._show = show

    def update(self, count: int) -> None:
        self.done += count
        if self.done > self._max_bytes:
            raise DownloadError(
                f"{self._url} sends more than {self._max_bytes >> 20} MB: that is no recordings archive"
            )
        if count:  # pooch ends with the size that the server stated, which may be none
            self._show(min(self.done, self.total or self.done), self.total)

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        pass


@contextlib.contextmanager
def _display(title: str, report: Callable[[str], None]) -> Iterator[Progress]:
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total or None)
        return
    due = time.monotonic() + _LINE_SECONDS

    def line(done: int, total: int) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + _LINE_SECONDS
            report(f"{title}: {_megabytes(done, total)}")

    yield line


def _megabytes(done: int, total: int) -> str:
    return f"{done / 1e6:.1f} of {total / 1e6:.1f} MB" if total else f"{done / 1e6:.1f} MB"


def _reason(error: Exception) -> str:
    """The innermost reason in the long text of a connection error."""
    reason = str(error).rsplit(": ", 1)[-1].rstrip("')\"")
    return reason + ")" * (reason.count("(") - reason.count(")"))
