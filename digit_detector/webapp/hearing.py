"""Live streams of all sockets: which process hears each of them, and who is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count

from digit_detector.streaming.engine import Detection
from digit_detector.streaming.thresholds import Thresholds
from digit_detector.webapp.ears import END, FORGET, HEAD, HEAR
from digit_detector.webapp.faults import RefusedError, busy, refusal
from ml_training.errors import AudioError, DigitError, StreamError

_LONGEST_LINE = 1 << 24  # bytes that a process may tell at once
_PAUSE = 2.0  # seconds between two attempts to start one
_PATIENCE = 5.0  # seconds that it is given to end
_log = logging.getLogger("digits.serve")


@dataclass(frozen=True)
class Heard:
    """What was made of the pieces of a stream until now."""

    pieces: int  # how many of them were heard
    seconds: float
    level_db: float
    voice: float
    detections: list[Detection]
    ended: bool = False
    fault: RefusedError | None = None


@dataclass(eq=False)
class Line:
    """One stream, and who is told what was heard in it."""

    number: int
    rate: int
    tell: Callable[[Heard], None]
    ears: _Ears
    sent: list[int] = field(default_factory=list)  # samples of each piece that was not heard yet
    waiting: int = 0  # samples in them
    pieces: int = 0  # that were heard


class Hearing:
    """Opens, feeds and ends streams; each is heard in one of some processes."""

    def __init__(
        self, model_dir: str, pipelines: Sequence[str], thresholds: Thresholds, most_streams: int,
        behind_seconds: float, processes: int, spotter: str | None = None,
    ) -> None:  # fmt: skip
        asked = {
            "model_dir": model_dir, "pipelines": list(pipelines), "thresholds": asdict(thresholds), "spotter": spotter,
        }  # fmt: skip
        self._most, self._behind = most_streams, behind_seconds
        self._ears = [_Ears(json.dumps(asked), self._tell) for _ in range(processes)]
        self._lines: dict[int, Line] = {}
        self._numbers = count()
        self.digits = 0
        self.seconds = 0.0

    async def start(self) -> None:
        """Begin to hear; what is found is told in the running event loop."""
        await asyncio.gather(*(ears.start() for ears in self._ears))

    async def stop(self) -> None:
        await asyncio.gather(*(ears.stop() for ears in self._ears))

    @property
    def streams(self) -> int:
        return len(self._lines)

    def open(self, rate: int, tell: Callable[[Heard], None]) -> Line:
        """A new stream. Raises RefusedError where there are too many, or nothing hears just now."""
        if len(self._lines) >= self._most:
            raise busy(f"{self._most} streams are open, as many as are heard at once")
        least = min((ears for ears in self._ears if ears.hears), key=lambda ears: len(ears.lines), default=None)
        if least is None:
            raise busy("what hears live sound has ended and is started again")
        line = Line(next(self._numbers) % 2**32, rate, tell, least)
        self._lines[line.number] = least.lines[line.number] = line
        return line

    def feed(self, line: Line, piece: bytes) -> None:
        """More of a stream, 16-bit samples. Raises RefusedError where too much of it waits."""
        size = len(piece) // 2
        line.waiting += size
        self.seconds += size / line.rate
        if line.waiting > self._behind * line.rate:
            raise busy("more streams are open than this machine can hear")
        line.sent.append(size)
        line.ears.say(HEAR, line, piece)

    def end(self, line: Line) -> None:
        """No more of a stream will come: its last digits are told, and that it has ended."""
        line.ears.say(END, line)

    def close(self, line: Line) -> None:
        """Forget a stream."""
        if self._forget(line):
            line.ears.say(FORGET, line)

    def _tell(self, line: Line, heard: Heard) -> None:
        self.digits += len(heard.detections)
        new = heard.pieces - line.pieces
        line.waiting -= sum(line.sent[:new])
        del line.sent[:new]
        line.pieces = heard.pieces
        if heard.ended:
            self._forget(line)
        line.tell(heard)

    def _forget(self, line: Line) -> bool:
        line.ears.lines.pop(line.number, None)
        return self._lines.pop(line.number, None) is not None


class _Ears:
    """One process that hears, seen from the server. One that dies is followed by another; its streams are lost."""

    def __init__(self, asked: str, tell: Callable[[Line, Heard], None]) -> None:
        self._asked, self._tell = asked, tell
        self.lines: dict[int, Line] = {}
        self.hears = False
        self._process: Process | None = None
        self._over = False

    async def start(self) -> None:
        """Raises StreamError where it cannot begin."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "digit_detector.webapp.ears", self._asked, stdin=PIPE, stdout=PIPE,
            limit=_LONGEST_LINE, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        assert self._process.stdout is not None
        if not await self._process.stdout.readline():
            raise StreamError(f"the process that hears could not begin (exit code {await self._process.wait()})")
        self.hears = True
        self._listening = asyncio.ensure_future(self._listen(self._process))

    async def stop(self) -> None:
        self._over = True
        process = self._process
        if process is None or process.stdin is None:
            return
        process.stdin.close()
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._listening
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()

    def say(self, kind: int, line: Line, samples: bytes = b"") -> None:
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(HEAD.pack(kind, line.number, line.rate, len(samples)) + samples)

    async def _listen(self, process: Process) -> None:
        assert process.stdout is not None
        while (told := await process.stdout.readline()).endswith(b"\n"):  # one that dies may leave half a line
            for row in json.loads(told):
                line = self.lines.get(row["stream"])
                if line is not None:  # otherwise it was closed meanwhile
                    self._tell(line, _heard(row))
        self.hears = False
        if self._over:
            return
        _log.error("a process that hears ended (exit code %s); another is started", await process.wait())
        for line in list(self.lines.values()):
            self._tell(line, _failed(busy("what heard this stream has ended and is started again")))
        while not self._over:
            try:
                return await self.start()
            except (StreamError, OSError) as error:
                _log.error("%s; it is tried again", error)
                await asyncio.sleep(_PAUSE)


def _heard(row: dict[str, object]) -> Heard:
    if "fault" in row:
        return _failed(AudioError(str(row["fault"])))
    return Heard(
        row["pieces"], row["seconds"], row["level_db"], row["voice"],  # type: ignore[arg-type]
        [Detection(*said) for said in row["digits"]], bool(row["ended"]),  # type: ignore[attr-defined]
    )  # fmt: skip


def _failed(error: DigitError) -> Heard:
    return Heard(0, 0.0, -120.0, 0.0, [], True, refusal(error))
