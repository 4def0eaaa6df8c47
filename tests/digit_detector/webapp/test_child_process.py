"""Child processes of servers that run in several threads of one process."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from digit_detector.webapp.child_process import ChildProcess

uvloop = pytest.importorskip("uvloop")
PROGRAM = ["-S", "-c", "import sys; print('[]', flush=True); sys.stdin.read()"]


def start_children(count):
    async def main():
        children = [ChildProcess(PROGRAM, {}) for _ in range(count)]
        try:
            await asyncio.gather(*(child.start() for child in children))
            return len({child.pid for child in children})
        finally:
            await asyncio.gather(*(child.stop() for child in children))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


def test_event_loops_in_two_threads_start_children_at_once():
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(start_children, [20, 20])) == [20, 20]
