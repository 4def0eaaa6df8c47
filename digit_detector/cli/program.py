"""What every command-line door does alike: refusing, stopping, and what it owes to whatever its output goes to."""

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
    """Words of a command line, or else those that the process was started with, to an exit code."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def program(main: Main) -> Main:
    """A door's `main` whose errors are one line and an exit code, for any terminal and any reader.

    Signs that the output has no code for are escaped. Being asked to stop, and a closed pipe (`| head -1`), end it
    without a traceback, with the exit code that a shell expects.
    """

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        code = run(argv)
        if argv is None:
            ignore_signals_after(code)
        if "torch.distributed" in sys.modules and torchrun_rank() is not None:
            _end_at_once(code)
        return code

    def run(argv: Sequence[str] | None) -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            code = main(argv)
            if sys.stdout is not None:  # pythonw has none
                sys.stdout.flush()
            return code
        except DigitError as error:
            print(f"error: {escape_controls(str(error))}", file=sys.stderr)
            return error.exit_code
        except Interrupted as stopped:
            return stopped.exit_code
        except KeyboardInterrupt:
            return 130  # 128 + SIGINT
        except BrokenPipeError:
            _drop_output()
            return 141  # 128 + SIGPIPE
        except PermissionError as error:  # wherever a folder is looked into: whose it is, is the user's to change
            name = escape_controls(str(error.filename))
            print(f"error: {name}: {error.strerror}; change its rights or name another", file=sys.stderr)
            return 1
        except OSError as error:
            if error.errno == errno.EROFS:
                where = f"{escape_controls(str(error.filename))}: " if error.filename else ""
                print(f"error: {where}{error.strerror}; name another place", file=sys.stderr)
                return 1
            if error.errno != errno.ENOSPC or error.filename is not None:
                raise
            _drop_output()
            print(f"error: cannot write the output: {error.strerror}; make room", file=sys.stderr)
            return 1

    return wrapped


def ignore_signals_after(code: int) -> None:
    """Let no further Ctrl-C break into the end of this process, where `code` says that it was asked to end."""
    if code - 128 in STOPS:
        ignore_interrupts()


def _end_at_once(code: int) -> NoReturn:
    """End without waiting for the threads with which torch heard other processes.

    One that asks for Python's lock while Python ends makes the process abort, and torchrun takes that for a failure.
    """
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _drop_output() -> None:
    """What is left in the buffer would fail again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def silent_libraries() -> Iterator[None]:
    """What C libraries print meanwhile goes nowhere: libmpg123 comments on damaged MP3s, in the midst of JSON."""
    import ctypes

    libc = ctypes.CDLL("msvcrt" if os.name == "nt" else None)
    kept: dict[int, int] = {}
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    with open(os.devnull, "wb") as nowhere:
        for descriptor in (1, 2):
            with contextlib.suppress(OSError):  # one that the shell closed
                kept[descriptor] = os.dup(descriptor)
                os.dup2(nowhere.fileno(), descriptor)
    try:
        yield
    finally:
        libc.fflush(None)
        for descriptor, copy in kept.items():
            os.dup2(copy, descriptor)
            os.close(copy)


def require(what: str, modules: Sequence[str], extra: str = "train") -> None:
    """Raise MissingExtraError where `what` cannot run for want of an extra's `modules`."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"{what} ({', '.join(missing)})", extra)
