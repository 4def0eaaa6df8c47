"""One contender in a process of its own, which does what lines of JSON on its input ask for.

    python -m ml_training.evaluation.benchmark_process NAME MODELS_DIR [FSDD]

Each line of its output answers one line of its input; what its libraries print goes to its error output.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ml_training.evaluation.contenders import Contender, Place, Recogniser, contenders


class _Work:
    def __init__(self, contender: Contender, place: Place) -> None:
        self.contender, self.place = contender, place
        self.threads = 0
        self.recogniser: Recogniser

    def open(self, threads: int) -> dict[str, Any]:
        """Open it on so many threads; seconds that took."""
        began = time.perf_counter()
        if threads != self.threads:
            self.recogniser, self.threads = self.contender.open(self.place, threads), threads
        return {"seconds": time.perf_counter() - began, "megabytes": self.recogniser.megabytes}

    def hear(self, clips: str) -> dict[str, Any]:
        """The digit of each of the clips (N, T) in a file of numpy's."""
        return {"digits": [int(self.recogniser.one(clip)) for clip in np.load(clips)]}

    def one(self, clips: str, times: int, begin: int) -> dict[str, Any]:
        """Milliseconds of `times` single clips, from the one at `begin` on."""
        loaded = np.load(clips, mmap_mode="r")
        chosen = [np.array(loaded[(begin + i) % len(loaded)]) for i in range(times)]
        return {"ms": [_milliseconds(lambda clip=clip: self.recogniser.one(clip)) for clip in chosen]}

    def file(self, files: list[str], times: int, begin: int) -> dict[str, Any]:
        """Milliseconds of `times` files whose bytes are in memory already."""
        chosen = [Path(files[(begin + i) % len(files)]).read_bytes() for i in range(times)]
        return {"ms": [_milliseconds(lambda content=content: self.recogniser.file(content)) for content in chosen]}

    def many(self, clips: str, count: int) -> dict[str, Any]:
        """Seconds for `count` clips, those of the file again and again."""
        loaded = np.load(clips)
        began, left = time.perf_counter(), count
        while left > 0:
            self.recogniser.many(loaded[:left])
            left -= len(loaded)
        return {"seconds": time.perf_counter() - began}

    def memory(self) -> dict[str, Any]:
        """Largest resident size so far, MB."""
        status = Path("/proc/self/status")
        if status.exists():  # what getrusage says there counts the process that started this one
            (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
            return {"megabytes": int(line.split()[1]) / 1e3}
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"megabytes": peak / (1e6 if sys.platform == "darwin" else 1e3)}


def _milliseconds(call: Any) -> float:
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def main() -> int:
    name, models_dir, *training = sys.argv[1:]
    place = Place(models_dir, Path(training[0]) if training else None)
    work = _Work(contenders()[name], place)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(work, request.pop("do"))(**request)
        except Exception as error:  # a contender may fail in any way; the others go on
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
