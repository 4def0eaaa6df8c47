"""Behaviour of every command: one-line errors, exit codes, interrupts, broken pipes, optional dependencies."""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.util
import io
import os
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn, Protocol

from digit_detector.cli.signals import STOPS, ignore_interrupts
from digit_detector.cli.text import escape_controls
from digit_detector.cli.torchrun_env import torchrun_rank
from digit_detector.errors import DigitError, Interrupted, MissingExtraError


class Main(Protocol):
    """From the arguments of a command, by default those of the process, to its exit code."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def program(main: Main) -> Main:
    """Decorate the `main` of a command: errors become one line and an exit code, never a traceback.

    Characters that the output cannot encode are escaped. Signals and a closed pipe (`| head -1`) end it with the exit
    code that a shell expects.
    """

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        code = _run(main, argv)
        if argv is None:
            ignore_signals_after(code)
        if "torch.distributed" in sys.modules and torchrun_rank() is not None:
            _end_at_once(code)
        return code

    return wrapped


def _run(main: Main, argv: Sequence[str] | None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = main(argv)
        if sys.stdout is not None:  # pythonw has none
            sys.stdout.flush()
        return code
    except DigitError as error:
        return _fail(str(error), error.exit_code)
    except Interrupted as stopped:
        return stopped.exit_code
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT
    except BrokenPipeError:
        _discard_output()
        return 141  # 128 + SIGPIPE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        if isinstance(error, PermissionError):
            return _fail(f"{where}{error.strerror}; change its rights or name another")
        if error.errno == errno.EROFS:
            return _fail(f"{where}{error.strerror}; name another place")
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        _discard_output()
        return _fail(f"cannot write the output: {error.strerror}; make room")


def _fail(message: str, code: int = 1) -> int:
    print(f"error: {escape_controls(message)}", file=sys.stderr)
    return code


def ignore_signals_after(code: int) -> None:
    """Ignore further Ctrl-C while this process ends, if `code` is that of an interrupt."""
    if code - 128 in STOPS:
        ignore_interrupts()


def _end_at_once(code: int) -> NoReturn:
    """End without waiting for torch's communication threads.

    One that takes Python's lock while Python ends makes the process abort, which torchrun counts as a failure.
    """
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _discard_output() -> None:
    """Discard buffered output, which would fail again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def silent_libraries() -> Iterator[None]:
    """Discard what C libraries print: libmpg123 comments on damaged MP3s, in the middle of JSON."""
    import ctypes

    libc = ctypes.CDLL("msvcrt" if os.name == "nt" else None)
    saved: dict[int, int] = {}
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    with open(os.devnull, "wb") as null:
        for descriptor in (1, 2):
            with contextlib.suppress(OSError):  # closed by the shell
                saved[descriptor] = os.dup(descriptor)
                os.dup2(null.fileno(), descriptor)
    try:
        yield
    finally:
        libc.fflush(None)
        for descriptor, copy in saved.items():
            os.dup2(copy, descriptor)
            os.close(copy)


def require(what: str, modules: Sequence[str], extra: str = "train") -> None:
    """Raise MissingExtraError if `what` cannot run without `modules` of an extra."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"{what} ({', '.join(missing)})", extra)
