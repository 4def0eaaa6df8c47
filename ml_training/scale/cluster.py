"""The Ray cluster that work is sent to: one that is running, or one of this machine alone for as long as it takes."""

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

_PATIENCE = 10.0  # seconds in which somebody has to answer
LOOPBACK = "127.0.0.1"
ADDRESS_VARIABLE = "RAY_ADDRESS"
# Ray's own name for "bind to the loopback address", which it does by itself on Windows and macOS alone.
_LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# What workers have to know that this process was told.
_PASSED_ON = ("DIGIT_DATA_DIR", "DIGIT_CORPORA_DIR", "DIGIT_CACHE_DIR", "DIGIT_DATA_URL", "OMP_NUM_THREADS")


def ray_module() -> Any:
    """Ray, which sends no statistics home. Raises MissingExtraError without it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("--engine ray", "scale") from error
    return ray


def quiet(name: str) -> None:
    """Let one of Ray's libraries, which has been imported, say what went wrong and no more."""
    logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def cluster(address: str, cores: int) -> Iterator[Any]:
    """Ray, connected to `address` or to $RAY_ADDRESS; without both, to a cluster of this machine with so many cores.

    That one listens on 127.0.0.1 alone and ends here. Raises ClusterError where nobody answers at the address.
    """
    address = address or os.environ.get(ADDRESS_VARIABLE, "")
    if not address:
        os.environ.setdefault(_LOOPBACK_VARIABLE, "0")  # read when Ray is imported
    ray = ray_module()
    root = str(Path(ml_training.__file__).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    known = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    options: dict[str, Any] = {
        "logging_level": logging.ERROR, "log_to_driver": False,
        "runtime_env": {"env_vars": {**known, "PYTHONPATH": os.pathsep.join(paths)}},
    }  # fmt: skip
    _see_that_somebody_answers(address)
    try:
        if address:
            ray.init(address=address, **options)
        else:
            ray.init(num_cpus=cores, include_dashboard=False, _node_ip_address=LOOPBACK, **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        where = address or "this machine"
        raise ClusterError(
            f"no Ray cluster at {where} ({str(error).splitlines()[0]}): start one with `ray start --head`, or leave "
            f"--ray_address and ${ADDRESS_VARIABLE} out for one of this machine"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _see_that_somebody_answers(address: str) -> None:
    """Ray itself waits for minutes. Raises ClusterError."""
    host, _, port = address.rpartition(":")
    if not host or "://" in address or not port.isdecimal():  # "auto", or Ray's own protocol
        return
    try:
        socket.create_connection((host, int(port)), _PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"no Ray cluster at {address} ({error}): start one with `ray start --head`, or leave --ray_address and "
            f"${ADDRESS_VARIABLE} out for one of this machine"
        ) from error


def cores_of(ray: Any) -> int:
    """How many cores the nodes that live have together."""
    return int(sum(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]))
