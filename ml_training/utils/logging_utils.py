"""Log of a training run: handlers for a text file, JSON Lines and the screen; progress, TensorBoard and curves.

Every module of ml_training logs through `logging.getLogger(__name__)`; while a RunLogger is open, its handlers on the
logger "ml_training" take these messages. An application can add handlers of its own or set levels as usual.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from digit_detector.errors import TrainingError
from ml_training.results import EpochRecord

REDRAW_SECONDS = 2.0  # least time between two drawings of the curves
BAR_SECONDS = 0.1  # least time between two updates of the progress bar
STYLES = {logging.WARNING: "bold yellow", logging.ERROR: "bold red"}

Draw = Callable[[Sequence[EpochRecord]], None]


class RunLogger:
    """Handlers of one run, attached to the logger "ml_training" until `__exit__`.

    `name` is the pipeline or "all". Raises TrainingError when `log_dir` cannot be written to. A disk that fills up
    later ends that file, with a line on the screen, but not the training.
    """

    def __init__(self, log_dir: Path, name: str, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        try:
            log_dir.mkdir(parents=True, exist_ok=True)
            self.timestamp = _free_timestamp(log_dir, name)
            self.log_file = log_dir / f"experiment_{name}_{self.timestamp}.log"
            self.events_file = self.log_file.with_suffix(".jsonl")
            text, events = (_FileHandler(path, self.console) for path in (self.log_file, self.events_file))
        except OSError as error:
            raise TrainingError(
                f"cannot write logs to {log_dir}: {error.strerror or error}; choose another folder with --log_dir"
            ) from error
        text.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S"))
        events.setFormatter(_JsonFormatter())
        self._handlers = [_ScreenHandler(self.console), text, events]
        self._logger = logging.getLogger("ml_training")

    def __enter__(self) -> RunLogger:
        self._level = self._logger.level
        if self._level == logging.NOTSET:
            self._logger.setLevel(logging.INFO)
        for handler in self._handlers:
            self._logger.addHandler(handler)
        return self

    def __exit__(self, *error: object) -> None:
        self._logger.setLevel(self._level)
        for handler in self._handlers:
            self._logger.removeHandler(handler)
            handler.close()

    def say(self, line: str, event: str = "note", **fields: Any) -> None:
        """Log a line for the screen and the files; `fields` go into the event."""
        self._log(logging.INFO, line, event, fields)

    def warn(self, line: str, event: str = "warning", **fields: Any) -> None:
        self._log(logging.WARNING, line, event, fields)

    def fail(self, line: str, error: BaseException, event: str = "error", **fields: Any) -> None:
        """Log one line for the screen, with the whole traceback in the files."""
        self._log(logging.ERROR, line, event, fields, error=error)

    def record(self, line: str, event: str, level: str = "INFO", **fields: Any) -> None:
        """Log a line for the files alone."""
        self._log(logging.getLevelName(level), line, event, fields, screen=False)

    def _log(
        self, level: int, line: str, event: str, fields: dict[str, Any], screen: bool = True,
        error: BaseException | None = None,
    ) -> None:  # fmt: skip
        extra = {"event": event, "fields": fields, "screen": screen}
        self._logger.log(level, "%s", line, extra=extra, exc_info=error)

    @contextlib.contextmanager
    def training(self, pipeline: str, epochs: int, events_dir: Path, draw: Draw) -> Iterator[TrainingView]:
        """Watch one pipeline's training: progress bar or plain lines, TensorBoard events, curves through `draw`."""
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[figures]}"))
        # Only a terminal can redraw a line. The drawing thread takes time from training: five times a second is enough.
        bar = Progress(
            *columns, TimeRemainingColumn(), console=self.console, refresh_per_second=5, transient=True, expand=True,
            disable=not self.console.is_terminal,
        )  # fmt: skip
        with SummaryWriter(str(events_dir)) as writer, bar:
            view = TrainingView(self, pipeline, epochs, writer, draw, bar)
            try:
                yield view
            finally:
                view.redraw()


class _FileHandler(logging.FileHandler):
    """A new file, flushed after each line; a write that fails ends it with a line on the screen."""

    def __init__(self, path: Path, console: Console) -> None:
        super().__init__(path, mode="x", encoding="utf-8", errors="backslashreplace")
        self._console = console

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging calls it so)
        self.setLevel(sys.maxsize)
        with contextlib.suppress(OSError):
            self.close()
        line = f"warning: {self.baseFilename} ends here, it cannot be written: {sys.exception()}"
        self._console.print(line, style="bold yellow", markup=False)


class _ScreenHandler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "screen", True):
            try:
                self._console.print(record.getMessage(), style=STYLES.get(record.levelno), markup=False)
            except SystemExit:  # rich raises it for a closed pipe (| head): the files go on
                self._console.quiet = True


class _JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, event, message, the fields of the event and a traceback, if any."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")
        entry = {"time": time, "level": record.levelname, "event": getattr(record, "event", record.name)}
        trace = {"traceback": self.formatException(record.exc_info)} if record.exc_info else {}
        return json.dumps(
            {**entry, "message": record.getMessage(), **getattr(record, "fields", {}), **trace}, default=str
        )


class TrainingView:
    """The callback of one pipeline's training: screen, log, TensorBoard and curves."""

    def __init__(
        self, logger: RunLogger, pipeline: str, epochs: int, writer: SummaryWriter, draw: Draw, bar: Progress
    ) -> None:
        self._logger, self._pipeline, self._epochs = logger, pipeline, epochs
        self._writer, self._draw, self._bar = writer, draw, bar
        self._task: TaskID | None = None
        self._written = 0  # epochs that TensorBoard has
        self._pending: Sequence[EpochRecord] = ()  # a history not drawn yet
        self._drawn_at = self._shown_at = -1e9

    def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float, rate: float) -> None:
        """One optimiser step is done (or several)."""
        now = time.monotonic()
        if self._bar.disable or (now - self._shown_at < BAR_SECONDS and step < steps):
            return
        self._shown_at, done = now, (epoch - 1) * steps + step
        if self._task is None:
            self._task = self._bar.add_task("", total=self._epochs * steps, completed=done, figures="")
        figures = f"loss {loss:.3f}  accuracy {100 * accuracy:.1f} %  rate {rate:.1e}"
        description = f"{self._pipeline} {epoch}/{self._epochs}"
        self._bar.update(self._task, description=description, completed=done, figures=figures)

    def epoch(self, history: Sequence[EpochRecord], better: bool) -> None:
        """An epoch is done; `history` holds it and all before."""
        self.catch_up(history)
        last = history[-1]
        seconds = sum(record.seconds for record in history) / len(history) * (self._epochs - last.epoch)
        line = (
            f"{self._pipeline} epoch {last.epoch:>{len(str(self._epochs))}}/{self._epochs}  "
            f"loss {last.train_loss:.4f}  accuracy {100 * last.train_accuracy:5.1f} %  "
            f"validation loss {last.validation_loss:.4f}  accuracy {100 * last.validation_accuracy:5.1f} %  "
            f"rate {last.learning_rate:.2e}  {last.seconds:.1f} s"
            f"{'' if not self._bar.disable else f'  {round(seconds) // 60}:{round(seconds) % 60:02d} left'}"
            f"{'  * best' if better else ''}"
        )
        self._logger.say(line, "epoch", pipeline=self._pipeline, best=better, figures=vars(last))
        if time.monotonic() - self._drawn_at >= REDRAW_SECONDS:
            self.redraw()

    def catch_up(self, history: Sequence[EpochRecord]) -> None:
        """Give TensorBoard the epochs it lacks, those of an earlier session too."""
        for record in history[self._written :]:
            for name, value in {
                "loss/train": record.train_loss, "loss/validation": record.validation_loss,
                "accuracy/train": record.train_accuracy, "accuracy/validation": record.validation_accuracy,
                "learning_rate": record.learning_rate, "seconds_per_epoch": record.seconds,
            }.items():  # fmt: skip
                self._writer.add_scalar(name, value, record.epoch)
            self._pending = history
        self._writer.flush()
        self._written = len(history)

    def note(self, line: str) -> None:
        self._logger.say(f"{self._pipeline}: {line}", pipeline=self._pipeline)

    def redraw(self) -> None:
        """Draw the curves if epochs came since the last time."""
        if self._pending:
            try:
                self._draw(self._pending)
            except TrainingError as error:  # a full disk costs the picture, not the training
                self._logger.warn(f"{self._pipeline}: the curves could not be drawn: {error}")
            self._pending, self._drawn_at = (), time.monotonic()


def _free_timestamp(log_dir: Path, name: str) -> str:
    """The time in seconds; two runs within one second wait for each other."""
    while (log_dir / f"experiment_{name}_{(stamp := f'{datetime.now():%Y%m%d_%H%M%S}')}.log").exists():
        time.sleep(0.05)
    return stamp
