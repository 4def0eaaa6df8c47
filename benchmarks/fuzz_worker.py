"""The process that decodes for fuzz_decoding.py, and how it is watched: python fuzz_worker.py DESCRIPTOR starts it.

Standard input is, for each input, its length (4 bytes, little-endian) and its bytes; a line of JSON comes to the
descriptor for each. Linux alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import platform
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CANARY = "diary.wav"  # a recording in the worker's folder, which no input may make it open
LONGEST = 1000  # characters of a message

_PATH = re.compile(r"(?<![\w:/.<])/(?:[\w.@-]+/)+[\w.-]*|[\w.-]+\.(?:py|so|onnx)\b")
_BLAME = re.compile(r"(?i)\bmodels?\b|export or train|train it again")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
# What libmpg123 and libsndfile say of damaged files; `digits predict` and the server's decoders send it nowhere.
_NOTES = re.compile(r"(?:Note|Warning): |\[src/libmpg123/|alac_\w+ \d+ : ")
_STARTS_WITHIN = 60.0  # seconds
PATIENCE = 12  # times as long as the processor may take, an answer may take on the clock
_SOCKET = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}  # AUDIT_ARCH and the number of socket(2)


# --- in the process ------------------------------------------------------------------------------


def work(descriptor: int, make: Callable[[], Callable[[bytes], dict[str, Any]]]) -> None:
    """Answer until standard input ends, by what `make` makes."""
    forbid_internet()
    answered = make()
    libc = ctypes.CDLL(None)
    with os.fdopen(descriptor, "w", encoding="utf-8") as answers:
        while head := sys.stdin.buffer.read(4):
            answer = answered(sys.stdin.buffer.read(int.from_bytes(head, "little")))
            answer["children_mb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
            sys.stdout.flush()
            sys.stderr.flush()
            libc.fflush(None)  # what a C library printed
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def make_classifier() -> Callable[[bytes], dict[str, Any]]:
    """What answers the bytes of a file with a model that ships."""
    from digit_detector.classifier import load_classifier

    classifier = load_classifier("pretrained", "mel_cnn")

    def answered(content: bytes) -> dict[str, Any]:
        try:
            (entry,) = classifier.batch_predict([content])
        except Exception as error:  # whatever it is: a file of a batch must never end it
            told = f"{type(error).__name__}: {error}"
            return {"kind": "nothing", "findings": [["traceback", told[:300]], *message_findings(str(error))]}
        if "error" in entry:
            return {"kind": "refusal", "error": entry["error"], "findings": message_findings(entry["error"])}
        shares = entry["probabilities"]
        sane = len(shares) == 10 and abs(math.fsum(shares) - 1) < 1e-3 and 0 <= entry["digit_score"] <= 1
        return {"kind": "answer", "findings": [] if sane else [["no sane answer", repr(entry)[:300]]]}

    return answered


def message_findings(message: str) -> list[list[str]]:
    """What a message to whoever sent a file must not hold: kind and detail of each."""
    checks = {"path": _PATH, "blames the model": _BLAME, "control characters": _CONTROL}
    found = [[kind, ascii(message[:300])] for kind, pattern in checks.items() if pattern.search(message)]
    return found + ([["long message", f"{len(message)} characters"]] if len(message) > LONGEST else [])


def forbid_internet() -> None:
    """From now on an internet socket ends this process with SIGSYS, whoever opens it (seccomp(2))."""
    architecture, number = _SOCKET[platform.machine()]
    load, equal, give = 0x20, 0x15, 0x06  # BPF: load a word, jump if equal, return
    rules = [
        (load, 0, 0, 4), (equal, 0, 5, architecture), (load, 0, 0, 0), (equal, 0, 3, number), (load, 0, 0, 16),
        (equal, 2, 0, 2), (equal, 1, 0, 10),  # AF_INET, AF_INET6
        (give, 0, 0, 0x7FFF0000), (give, 0, 0, 0x80000000),  # allow, kill the process
    ]  # fmt: skip
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
    packed = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(rules), ctypes.addressof(program)))
    libc = ctypes.CDLL(None, use_errno=True)
    zero, one = ctypes.c_ulong(0), ctypes.c_ulong(1)
    for words in ((38, one, zero), (22, ctypes.c_ulong(2), packed)):  # PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP: a filter
        if libc.prctl(*words, zero, zero):
            raise OSError(ctypes.get_errno(), "sockets cannot be forbidden here")


# --- beside it -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """What an input may take."""

    seconds: float = 5.0  # of the processor; on the clock PATIENCE times that, for others may be at work
    megabytes: float = 300.0


@dataclass(frozen=True)
class Outcome:
    """What became of an input ("answer", "refusal" or "nothing"); kind and detail of what is wrong with that."""

    kind: str
    findings: tuple[tuple[str, str], ...]
    seconds: float
    megabytes: float
    error: str = ""


class Worker:
    """The process that decodes; it is started again where it died."""

    def __init__(self, folder: Path, warm: Sequence[bytes], limits: Limits, program: str = __file__) -> None:
        """`folder` holds the file CANARY; `warm` are recordings that it can answer, for all that is made once."""
        self._folder, self._warm, self._limits, self._program = folder, warm, limits, program
        self._printed = folder / "printed"
        self._watch = FileWatch(folder / CANARY)
        self._start()

    def _start(self) -> None:
        reading, writing = os.pipe()
        path = os.pathsep.join((str(ROOT), str(ROOT / "benchmarks")))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
        with self._printed.open("wb") as printed:
            self._process = subprocess.Popen(
                [sys.executable, self._program, str(writing)], stdin=subprocess.PIPE, stdout=printed, stderr=printed,
                cwd=self._folder, env=environment, pass_fds=[writing],
            )  # fmt: skip
        os.close(writing)
        self._answers = os.fdopen(reading, "rb", buffering=0)
        self._unread = b""
        for content in self._warm:
            self.begin(content)
            if "kind" not in self._receive(_STARTS_WITHIN):
                self.close()
                raise RuntimeError(f"the worker does not start: {self._text()[-2000:]}")
        self._size, self._open, self._ended_mb = self._printed.stat().st_size, self._descriptors(), 0.0
        self._watch.is_opened()

    def begin(self, content: bytes) -> None:
        """Let it work on an input."""
        for process in processes_of(self._process.pid):
            reset_peak(process)
        self._began, self._cpu = time.monotonic(), self._cpu_seconds()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died meanwhile, as its answer will show
            self._process.stdin.write(len(content).to_bytes(4, "little") + content)
            self._process.stdin.flush()

    def end(self) -> Outcome:
        """What became of it."""
        answer = self._receive(self._limits.seconds)
        seconds = time.monotonic() - self._began
        peaks = [peak_megabytes(process) for process in processes_of(self._process.pid)]
        if (ended := answer.get("children_mb", 0.0)) > self._ended_mb:  # of helpers that have come and gone
            self._ended_mb = ended
            peaks.append(ended)
        megabytes = max(peaks, default=0.0)
        found = [(kind, detail) for kind, detail in answer.get("findings", ())]
        if megabytes > self._limits.megabytes:
            found.append(("memory", f"{megabytes:.0f} MB"))
        if self._watch.is_opened():
            found.append(("another file", f"{CANARY} was opened"))
        if "kind" not in answer:
            found.append(self._death(late="late" in answer))
            self._start()
            return Outcome("nothing", tuple(found), seconds, megabytes)
        if (size := self._printed.stat().st_size) > self._size:
            if text := "\n".join(line for line in self._text().splitlines() if not _NOTES.match(line)):
                found.append(("output", ascii(text[:300])))
            self._size = size
        if (count := self._descriptors()) > self._open:
            found.append(("descriptors", f"{count - self._open} left open"))
        self._open = count
        return Outcome(answer["kind"], tuple(found), seconds, megabytes, answer.get("error", ""))

    def _receive(self, seconds: float) -> dict[str, Any]:
        """Its answer; {"late": True} after so many seconds, {} where it died."""
        end = time.monotonic() + PATIENCE * seconds
        while b"\n" not in self._unread:
            if not select.select([self._answers], [], [], min(1.0, seconds / 2))[0]:
                if self._cpu_seconds() - self._cpu > seconds or time.monotonic() > end:
                    return {"late": True}
                continue
            if not (more := self._answers.read(1 << 16)):
                return {}
            self._unread += more
        line, self._unread = self._unread.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _death(self, late: bool) -> tuple[str, str]:
        took = (
            f"{self._cpu_seconds() - self._cpu:.1f} s of the processor, {time.monotonic() - self._began:.1f} s in all"
        )
        self.close()
        if late:
            return "hang", f"no answer after {took}"
        code = self._process.returncode
        if code == -signal.SIGSYS:
            return "socket", "an internet socket was asked for"
        why = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return "crash", f"{why} {self._text()[-600:]!a}"

    def _text(self) -> str:
        """What was printed since the last look."""
        return self._printed.read_bytes()[getattr(self, "_size", 0) :].decode(errors="replace")

    def _cpu_seconds(self) -> float:
        """What it and its helpers took of the processor."""
        return sum(map(cpu_seconds, processes_of(self._process.pid)))

    def _descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))

    def close(self) -> None:
        """End it, and its helpers."""
        helpers = processes_of(self._process.pid)[1:]
        with contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for process in helpers:  # which may outlive it where it was killed
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._answers.close()


class FileWatch:
    """Whether a file was opened (inotify(7))."""

    def __init__(self, file: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._events = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._events < 0 or libc.inotify_add_watch(self._events, os.fsencode(file), 0x20) < 0:  # IN_OPEN
            raise OSError(ctypes.get_errno(), f"{file} cannot be watched")

    def is_opened(self) -> bool:
        """Since the last time that this was asked."""
        try:
            return bool(os.read(self._events, 4096))
        except BlockingIOError:
            return False


def processes_of(process: int) -> list[int]:
    """A process and all that it started, directly or not, and that run."""
    found = [process]
    for one in found:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{one}/task"):
                found += map(int, Path(f"/proc/{one}/task/{task}/children").read_bytes().split())
    return found


def cpu_seconds(process: int) -> float:
    """What a process took of the processor; 0 of one that ended."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def reset_peak(process: int) -> None:
    with contextlib.suppress(OSError):  # it ended meanwhile
        Path(f"/proc/{process}/clear_refs").write_bytes(b"5")


def peak_megabytes(process: int) -> float:
    """Most memory that a process held since `reset_peak`; 0 of one that ended."""
    with contextlib.suppress(OSError):
        found = re.search(rb"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_bytes())
        return int(found[1]) / 1024 if found else 0.0
    return 0.0


if __name__ == "__main__":
    work(int(sys.argv[1]), make_classifier)
