"""The Ray cluster of --engine ray: one that runs, or one of this machine that ends with the command."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_training
from digit_detector.errors import ClusterError, MissingExtraError

MAX_FAILURES = 8  # machines that may be lost before work is given up
_CONNECT_SECONDS = 10.0
_PASSED_ON = ("DIGIT_DATA_DIR", "DIGIT_CORPORA_DIR", "DIGIT_CACHE_DIR", "DIGIT_DATA_URL", "OMP_NUM_THREADS")


@contextlib.contextmanager
def ray_cluster(address: str, cores: int, needed: int) -> Iterator[Any]:
    """Ray, connected to `address` or $RAY_ADDRESS; without both, to a cluster of `cores` on 127.0.0.1.

    Raises MissingExtraError without Ray, ClusterError where no cluster answers or has the `needed` cores.
    """
    address = address or os.environ.get("RAY_ADDRESS", "")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    if not address:  # Ray's name for "bind to the loopback address"; it is read when Ray is imported
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("--engine ray", "scale") from error
    root = str(Path(ml_training.__file__).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    options: dict[str, Any] = {
        "logging_level": logging.ERROR, "log_to_driver": False,
        "runtime_env": {"env_vars": variables | {"PYTHONPATH": os.pathsep.join(paths)}},
    }  # fmt: skip
    try:
        if address:
            _check_port(address)
            ray.init(address=address, **options)
        else:
            ray.init(address="local", num_cpus=cores, include_dashboard=False, _node_ip_address="127.0.0.1", **options)
    except Exception as error:  # Ray's share no narrower base
        raise ClusterError(
            f"no Ray cluster at {address or 'this machine'} ({str(error).splitlines()[0]}): start one with `ray start "
            "--head`, or leave --ray_address and $RAY_ADDRESS out for one of this machine"
        ) from error
    try:
        found = int(sum(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]))
        if found < needed:
            raise ClusterError(f"the cluster has {found} cores, {needed} are needed: lower --workers or add nodes")
        yield ray
    finally:
        ray.shutdown()


def _check_port(address: str) -> None:
    """Raise OSError where nothing listens at host:port; Ray itself waits for minutes."""
    host, _, port = address.rpartition(":")
    if host and "://" not in address and port.isdecimal():
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()


def quiet(library: str) -> None:
    """Let one of Ray's libraries, which has been imported, log errors alone."""
    logging.getLogger(library).setLevel(logging.ERROR)


def last_line(error: BaseException) -> str:
    """The line of one of Ray's long messages that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("digit_detector.errors.")]
    return (own or lines or [type(error).__name__])[-1].removeprefix("digit_detector.errors.")[:300]
