"""A Ray cluster of several nodes on this machine, all of them bound to 127.0.0.1."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Before anybody imports Ray.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Ray's word for the loopback address
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def nodes() -> Iterator[Any]:
    """Start so many nodes of one core beside a head without any; gives the cluster, whose nodes can be killed."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    memory = {"node_ip_address": "127.0.0.1", "object_store_memory": 150_000_000}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory}
    )  # fmt: skip
    cluster.workers = [cluster.add_node(num_cpus=1, **memory) for _ in range(3)]
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()
