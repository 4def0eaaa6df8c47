"""Ctrl-C, SIGTERM and a hang-up: deferred while training, at once elsewhere, and never left behind."""

import os
import signal
import subprocess
import sys
from contextlib import nullcontext

import pytest

from digit_detector.cli.signals import StopSignals
from digit_detector.errors import Interrupted

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of another kind")


def send(signum):
    os.kill(os.getpid(), signum)


@pytest.fixture(autouse=True)
def no_nohup():
    """These tests themselves may run where a hang-up is ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_first_signal_waits_and_the_second_does_not(signum, code, capfd):
    def train_with_two(signals):
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


def test_outside_of_training_a_signal_leaves_at_once():
    with StopSignals(), pytest.raises(Interrupted):
        send(signal.SIGTERM)


def test_a_signal_that_nobody_looked_at_any_more_is_not_lost():
    with StopSignals() as signals, pytest.raises(Interrupted), signals.deferred():
        send(signal.SIGINT)


@pytest.mark.parametrize("deferred", [True, False])
def test_further_signals_do_not_break_into_what_clears_up(deferred):
    cleared = []

    def work():
        try:
            send(signal.SIGINT)
            send(signal.SIGINT)
        finally:
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
                send(signum)
            cleared.append(True)

    with StopSignals() as signals:
        within = signals.deferred() if deferred else nullcontext()
        with pytest.raises(Interrupted) as raised, within:
            work()
    assert (raised.value.signum, signals.leaving, cleared) == (signal.SIGINT, signal.SIGINT, [True])


def test_what_does_not_come_to_an_end_is_ended_by_a_later_signal():
    code = """
import os, signal
from digit_detector.cli import signals
signals.GRACE = 0.0
with signals.StopSignals():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        print("still there")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGTERM, "", "")


def test_a_hang_up_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals() as signals:
        send(signal.SIGHUP)
        assert signals.signum is None


def test_an_error_of_the_training_is_not_hidden_by_the_signal():
    def train():
        send(signal.SIGINT)
        raise ValueError("bad")

    with StopSignals() as signals, pytest.raises(ValueError, match="bad"), signals.deferred():
        train()
