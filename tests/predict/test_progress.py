import io
import re

import pytest

from ml_training.predict import progress
from ml_training.predict.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_elsewhere_than_on_a_terminal_there_is_a_plain_line_now_and_then(clock: list[float]) -> None:
    out = io.StringIO()
    shown = Progress(out)
    shown.begin(1_000_000)
    for _ in range(6000):
        clock[0] += 0.01
        shown.tell(1_000_000 + round(50 * (clock[0] - 100)), 7)
    shown.clear()
    lines = out.getvalue().splitlines()
    assert len(lines) in (5, 6)
    assert lines[1] == "1,001,000 files, 50 a second, 7 without an answer, 0:00:20"


def test_on_a_terminal_one_line_is_written_over_and_leaves_nothing(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    out = Terminal()
    shown = Progress(out)
    for done in range(1, 4):
        clock[0] += 1
        shown.tell(done, 0)
        shown.tell(done, 0)  # not so soon again
    shown.note("a line that stays")
    shown.tell(4, 0)
    clock[0] += 3600
    shown.tell(5, 0)
    shown.clear()
    text = out.getvalue()
    assert text.count("\r1 files, 1 a second") == 1
    assert all(len(part) < 30 for part in re.split("[\r\n]", text))
    assert "\n" not in text.split("a line that stays")[0]
    assert text.split("a line that stays\n")[0].endswith("\r")
    assert text.endswith(f"\r{' ' * 29}\r")
