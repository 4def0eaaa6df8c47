"""Ctrl-C and SIGTERM: deferred while training, at once elsewhere, and never left behind."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from ml_training.errors import Interrupted
from ml_training.utils.signals import StopSignals

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of another kind")


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_waits_and_the_second_does_not(
    signum: signal.Signals, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    def train_with_two(signals: StopSignals) -> None:
        with signals.deferred():
            send(signum)
            assert signals.signum == signum
            assert "once more leaves at once" in capfd.readouterr().err
            send(signum)
            pytest.fail("the second signal did not leave")

    before = signal.getsignal(signum)
    with StopSignals() as signals, pytest.raises(Interrupted) as raised:
        train_with_two(signals)
    assert raised.value.exit_code == code
    assert signal.getsignal(signum) is before


def test_outside_of_training_a_signal_leaves_at_once() -> None:
    with StopSignals() as signals, pytest.raises(Interrupted):
        send(signal.SIGTERM)
    assert signals.signum is None


def test_a_signal_that_nobody_looked_at_any_more_is_not_lost() -> None:
    with StopSignals() as signals, pytest.raises(Interrupted), signals.deferred():
        send(signal.SIGINT)


def test_an_error_of_the_training_is_not_hidden_by_the_signal() -> None:
    def train() -> None:
        send(signal.SIGINT)
        raise ValueError("bad")

    with StopSignals() as signals, pytest.raises(ValueError, match="bad"), signals.deferred():
        train()


def test_in_another_thread_nothing_is_touched() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def work() -> None:
        with StopSignals() as signals, signals.deferred():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
