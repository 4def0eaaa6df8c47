"""Jobs in processes: results, errors, crashes that fail one job alone, signals after which jobs finish their step."""

import os
import signal
import threading
import time
from typing import Any

import pytest

from digit_detector.cli.signals import StopSignals
from digit_detector.errors import ConfigError, Interrupted
from ml_training.evaluation.process_pool import CRASHED, Outcome, run_jobs

posix = pytest.mark.skipif(os.name == "nt", reason="signals of another kind")


def double(worker, job):
    worker.send(f"at {job}")
    if job == "crash":
        os._exit(3)
    if job == "fault":
        raise ConfigError(["too many", "too few"])
    worker.kept["jobs"] = worker.kept.get("jobs", 0) + 1
    return 2 * int(job)


def wait_for_stop(worker, job):
    with worker.stop.deferred():
        job.with_suffix(".begun").touch()
        while worker.stop.signum is None:
            time.sleep(0.01)
        job.with_suffix(".saved").touch()


def test_every_job_ends_once_and_a_crash_fails_its_own_job_alone():
    ended: list[Outcome[Any]] = []
    messages: list[str] = []
    jobs = [1, "crash", 2, "fault", 3]
    run_jobs(double, iter(jobs), 2, StopSignals(), messages.append, ended.append)
    assert {str(outcome.job): outcome.result or outcome.error for outcome in ended} == {
        "1": 2, "2": 4, "3": 6, "crash": CRASHED, "fault": "2 faults in settings: too many; too few",
    }  # fmt: skip
    assert len(ended) == len(jobs)
    assert set(messages) == {f"at {job}" for job in jobs}


@posix
def test_after_a_signal_jobs_finish_their_step_and_no_other_begins(tmp_path):
    jobs = [tmp_path / name for name in "abcd"]

    def interrupt():
        while len(list(tmp_path.glob("*.begun"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with StopSignals(unit=None) as signals, pytest.raises(Interrupted) as stopped:
        run_jobs(wait_for_stop, jobs, 2, signals, lambda message: None, lambda outcome: None)
    thread.join()
    assert stopped.value.exit_code == 143
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.begun", "a.saved", "b.begun", "b.saved"]
