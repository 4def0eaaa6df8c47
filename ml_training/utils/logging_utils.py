"""What a training run tells: a log for people, the same events as JSON Lines, the screen, TensorBoard."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from torch.utils.tensorboard import SummaryWriter

from digit_detector.errors import TrainingError
from ml_training.results import EpochRecord

REDRAW_SECONDS = 2.0  # least time between two drawings of the curves
BAR_SECONDS = 0.1  # least time between two updates of the live bar

Draw = Callable[[Sequence[EpochRecord]], None]


class RunLogger:
    """One run's log file and events; what matters is said on the screen too.

    `name` is the pipeline or "all". Raises TrainingError when `log_dir` cannot be written to. A
    disk that fills up later ends the log, with a line on the screen, and not the training.
    """

    def __init__(self, log_dir: Path, name: str, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        try:
            log_dir.mkdir(parents=True, exist_ok=True)
            self.timestamp = _free_timestamp(log_dir, name)
            self.log_file = log_dir / f"experiment_{name}_{self.timestamp}.log"
            self.events_file = self.log_file.with_suffix(".jsonl")
            # Unbuffered: a line is in the file when it was said, and nothing is left to fail later.
            self._files: dict[Path, FileIO] = {
                path: path.open("xb", buffering=0) for path in (self.log_file, self.events_file)
            }
        except OSError as error:
            raise TrainingError(
                f"cannot write logs to {log_dir}: {error.strerror or error}; choose another folder with --log_dir"
            ) from error

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()

    def say(self, line: str, event: str = "note", **fields: Any) -> None:
        """A line for the screen, the log and the events."""
        self._show(line)
        self.record(line, event, **fields)

    def warn(self, line: str, event: str = "warning", **fields: Any) -> None:
        """A line nobody should miss."""
        self._show(line, style="bold yellow")
        self.record(line, event, level="WARNING", **fields)

    def fail(self, line: str, error: BaseException, event: str = "error", **fields: Any) -> None:
        """One line on the screen; the log gets the whole traceback."""
        self._show(line, style="bold red")
        trace = "".join(traceback.format_exception(error))
        self.record(line, event, level="ERROR", traceback=trace, **fields)

    def record(self, line: str, event: str, level: str = "INFO", **fields: Any) -> None:
        """A line for the files alone."""
        now = datetime.now().astimezone()
        text = f"{now:%Y-%m-%d %H:%M:%S} {level:<7} {line}\n"
        if "traceback" in fields:
            text += fields["traceback"]
        entry = {"time": now.isoformat(timespec="milliseconds"), "level": level, "event": event, "message": line}
        self._write(self.log_file, text)
        self._write(self.events_file, json.dumps({**entry, **fields}, default=str) + "\n")

    def _show(self, line: str, style: str | None = None) -> None:
        try:
            self.console.print(line, style=style, markup=False)
        except SystemExit:  # so rich takes a closed pipe (| head); it is quiet from now on, and the log tells the rest
            self.console.quiet = True

    def _write(self, path: Path, text: str) -> None:
        file = self._files.get(path)
        if file is None:
            return
        try:
            file.write(text.encode("utf-8", errors="backslashreplace"))
        except OSError as error:
            del self._files[path]
            file.close()
            self._show(
                f"warning: {path} ends here, it cannot be written: {error.strerror or error}", style="bold yellow"
            )

    @contextmanager
    def training(self, pipeline: str, epochs: int, events_dir: Path, draw: Draw) -> Iterator[TrainingView]:
        """Watch one pipeline's training: live bar or plain lines, TensorBoard events, curves through `draw`."""
        # Only a terminal can redraw a line; a file would get every state of the bar.
        bar = _progress(self.console) if self.console.is_terminal else None
        with SummaryWriter(str(events_dir)) as writer:
            view = TrainingView(self, pipeline, epochs, writer, draw, bar)
            try:
                if bar is not None:
                    bar.start()
                yield view
            finally:
                if bar is not None:
                    bar.stop()
                view.redraw()


class TrainingView:
    """The trainer's observer: screen, log, TensorBoard and curves of one pipeline."""

    def __init__(
        self, logger: RunLogger, pipeline: str, epochs: int, writer: SummaryWriter, draw: Draw, bar: Progress | None
    ) -> None:
        self._logger, self._pipeline, self._epochs = logger, pipeline, epochs
        self._writer, self._draw, self._bar = writer, draw, bar
        self._task: TaskID | None = None
        self._written = 0  # epochs that TensorBoard has
        self._pending: Sequence[EpochRecord] = ()  # a history not drawn yet
        self._drawn_at = self._shown_at = -1e9
        self._began = time.monotonic()
        self._first: int | None = None  # steps done before this session
        self._position, self._steps = 0, 1

    def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float, rate: float) -> None:
        """One optimiser step is done (or several)."""
        self._position, self._steps = (epoch - 1) * steps + step, steps
        if self._first is None:
            self._first, self._began = self._position, time.monotonic()
        now = time.monotonic()
        if self._bar is None or (now - self._shown_at < BAR_SECONDS and step < steps):
            return
        self._shown_at = now
        if self._task is None:
            self._task = self._bar.add_task("", total=steps, figures="")
        self._bar.update(
            self._task,
            description=f"{self._pipeline} {epoch}/{self._epochs}",
            completed=step,
            total=steps,
            figures=f"loss {loss:.3f}  accuracy {100 * accuracy:.1f} %  rate {rate:.1e}  {self._left()} left",
        )

    def epoch(self, history: Sequence[EpochRecord], better: bool) -> None:
        """An epoch is done; `history` holds it and all before."""
        self.catch_up(history)
        last = history[-1]
        left = "" if self._bar is not None else f"  {self._left()} left"
        line = (
            f"{self._pipeline} epoch {last.epoch:>{len(str(self._epochs))}}/{self._epochs}  "
            f"loss {last.train_loss:.4f}  accuracy {100 * last.train_accuracy:5.1f} %  "
            f"validation loss {last.validation_loss:.4f}  accuracy {100 * last.validation_accuracy:5.1f} %  "
            f"rate {last.learning_rate:.2e}  {last.seconds:.1f} s{left}{'  * best' if better else ''}"
        )
        self._logger.say(line, "epoch", pipeline=self._pipeline, best=better, figures=vars(last))
        if time.monotonic() - self._drawn_at >= REDRAW_SECONDS:
            self.redraw()

    def catch_up(self, history: Sequence[EpochRecord]) -> None:
        """Give TensorBoard the epochs it lacks, those of an earlier session too; the curves follow."""
        if len(history) == self._written:
            return
        for record in history[self._written :]:
            self._to_tensorboard(record)
        self._writer.flush()
        self._written = len(history)
        self._pending = history

    def note(self, line: str) -> None:
        """Something else worth knowing."""
        self._logger.say(f"{self._pipeline}: {line}", pipeline=self._pipeline)

    def redraw(self) -> None:
        """Draw the curves if epochs came since the last time."""
        if self._pending:
            try:
                self._draw(self._pending)
            except TrainingError as error:  # a full disk costs the picture, not the training
                self._logger.warn(f"{self._pipeline}: the curves could not be drawn: {error}")
            self._pending = ()
            self._drawn_at = time.monotonic()

    def _left(self) -> str:
        """Time until the last epoch ends, at the speed so far."""
        done = self._position - (self._first or 0)
        if done <= 0:
            return "?"
        seconds = (time.monotonic() - self._began) / done * (self._epochs * self._steps - self._position)
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"

    def _to_tensorboard(self, record: EpochRecord) -> None:
        for name, value in {
            "loss/train": record.train_loss, "loss/validation": record.validation_loss,
            "accuracy/train": record.train_accuracy, "accuracy/validation": record.validation_accuracy,
            "learning_rate": record.learning_rate, "seconds_per_epoch": record.seconds,
        }.items():  # fmt: skip
            self._writer.add_scalar(name, value, record.epoch)


def _free_timestamp(log_dir: Path, name: str) -> str:
    """The time in seconds; two runs within one second wait for each other."""
    while (log_dir / f"experiment_{name}_{(stamp := f'{datetime.now():%Y%m%d_%H%M%S}')}.log").exists():
        time.sleep(0.05)
    return stamp


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[figures]}"),
        console=console,
        refresh_per_second=5,  # the drawing thread takes time from training
        transient=True,
        expand=True,
    )
