import subprocess
import sys

import numpy as np
import pytest
import torch

from digit_detector import memory
from digit_detector.memory import available_memory, halving, is_out_of_memory

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_the_process_own_limit_counts():
    code = """
import resource
from digit_detector.memory import available_memory
resource.setrlimit(resource.RLIMIT_AS, (1 << 29,) * 2)
print(available_memory())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert 0 < int(done.stdout) < 1 << 29
    assert 1 << 20 < (available_memory() or 0) < 1 << 50


def test_the_container_s_limit_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    before = available_memory()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5000\n")
    assert (before is None) == (available_memory() is None)
    (tmp_path / "memory.max").write_text("9000\n")
    assert available_memory() == 4000
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("7000\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("8000\n")
    assert available_memory() == 0


def test_errors_that_mean_it():
    with pytest.raises(MemoryError) as numpy_s:
        np.empty(1 << 60, dtype=np.uint8)
    with pytest.raises(RuntimeError) as torch_s:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(numpy_s.value)
    assert is_out_of_memory(torch_s.value)
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


def test_halves_until_it_fits():
    reported = []

    def work(size):
        if size > 30:
            raise MemoryError
        return f"{size} done"

    assert halving(work, 100, 1, lambda *sizes: reported.append(sizes)) == ("25 done", 25)
    assert reported == [(100, 50), (50, 25)]
    with pytest.raises(MemoryError):
        halving(work, 100, 40, lambda *sizes: None)
    with pytest.raises(ZeroDivisionError):
        halving(lambda size: size // 0, 100, 1, lambda *sizes: None)
