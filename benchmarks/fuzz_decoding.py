"""Damaged recordings of every format through the decoder and a model, watched from outside.

    python benchmarks/fuzz_decoding.py --inputs 100000 [--seed 0] [--formats wav_float flac] [--save FOLDER]
    python benchmarks/fuzz_decoding.py --seed 0 --only 4711          one of them again
    python benchmarks/fuzz_decoding.py --inputs 20000 --http 1000    the first thousand to `digits serve`, too

A process takes the bytes of one file after the other and answers or refuses each. A finding is: a crash, more than
--hang seconds of the processor, a process beyond --memory MB, an exception that is no DigitError, an error that blames
the model, names a path or holds control characters, anything printed but the known notes of libraries, a descriptor
left open, an internet socket, another file that is opened, a whole recording that is refused, text that is answered.
Leaves with 1 where there is any. Linux alone.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fuzz_inputs import FORMATS, Input, make_input, recordings
from fuzz_worker import (
    CANARY,
    PATIENCE,
    Limits,
    Outcome,
    Worker,
    message_findings,
    peak_megabytes,
    processes_of,
    reset_peak,
)
from web_load import Server

LIMITS = Limits()
SHOWN = 4  # findings of one kind and format that are printed


class Finding(NamedTuple):
    """What went wrong with an input."""

    given: Input
    kind: str
    detail: str


class Tally:
    """What became of all inputs."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self._counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._slowest: tuple[float, int] = (0.0, 0)
        self._largest: tuple[float, int] = (0.0, 0)

    def add(self, given: Input, outcome: Outcome) -> list[Finding]:
        """Count an outcome; its findings."""
        found = [Finding(given, *finding) for finding in outcome.findings]
        if given.is_whole and given.is_audio and outcome.kind == "refusal":
            found.append(Finding(given, "whole, but refused", outcome.error))
        if given.is_whole and not given.is_audio and outcome.kind == "answer":
            found.append(Finding(given, "text, but answered", ""))
        name = given.format if given.is_audio else "text"
        self._counts[name] += Counter([outcome.kind])
        self._counts[name]["findings"] += len(found)
        self._slowest = max(self._slowest, (outcome.seconds, given.index))
        self._largest = max(self._largest, (outcome.megabytes, given.index))
        self.findings += found
        return found

    def table(self) -> str:
        """Inputs by format, and the hardest ones."""
        total = sum(self._counts.values(), Counter[str]())
        kinds = ("answer", "refusal", "nothing", "findings")
        lines = [f"{'format':<14}{'inputs':>9}{'answers':>9}{'refusals':>10}{'neither':>9}{'findings':>10}"]
        for name, count in [*self._counts.items(), ("all", total)]:
            inputs = sum(count[kind] for kind in kinds[:3])
            cells = (inputs, *(count[kind] for kind in kinds))
            lines.append(f"{name:<14}{cells[0]:>9,}{cells[1]:>9,}{cells[2]:>10,}{cells[3]:>9,}{cells[4]:>10,}")
        (seconds, slow), (megabytes, large) = self._slowest, self._largest
        return "\n".join([*lines, f"slowest: {seconds:.2f} s ({slow}); most memory: {megabytes:.0f} MB ({large})"])


def fuzz(
    inputs: Sequence[int], seed: int, formats: tuple[str, ...] = FORMATS, limits: Limits = LIMITS
) -> Iterator[tuple[Input, Outcome]]:
    """Each input, by its number, and what became of it."""
    base, everything = recordings(formats), recordings()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / CANARY).write_bytes(everything[0].content)
        worker = Worker(folder, [recording.content for recording in everything if recording.is_audio], limits)
        try:
            upcoming = make_input(base, seed, inputs[0])
            for following in [*inputs[1:], None]:
                given = upcoming
                worker.begin(given.content)
                if following is not None:
                    upcoming = make_input(base, seed, following)  # while the worker is busy
                yield given, worker.end()
        finally:
            worker.close()


def fuzz_server(
    inputs: Iterable[int], seed: int, formats: tuple[str, ...] = FORMATS, limits: Limits = LIMITS
) -> Iterator[tuple[Input, Outcome]]:
    """The same by HTTP, to a server that is started for it."""
    base = recordings(formats)
    with Server() as server:
        for index in inputs:
            given = make_input(base, seed, index)
            yield given, post(server, given.content, limits)


def post(server: Server, content: bytes, limits: Limits) -> Outcome:
    """What a server says of a recording."""
    family = processes_of(server.pid)
    for process in family:
        reset_peak(process)
    border = "sent-by-fuzz-decoding"
    form = (
        f'--{border}\r\nContent-Disposition: form-data; name="method"\r\n\r\nml_cnn\r\n'
        f'--{border}\r\nContent-Disposition: form-data; name="file"; filename="clip"\r\n\r\n'
    ).encode()
    body = form + content + f"\r\n--{border}--\r\n".encode()
    began = time.monotonic()
    link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE * limits.seconds)
    kind, message, found = "nothing", "", list[tuple[str, str]]()
    try:
        with contextlib.closing(link):
            link.request("POST", "/process_audio", body, {"Content-Type": f"multipart/form-data; boundary={border}"})
            answer = link.getresponse()
            said = json.loads(answer.read())
        if answer.status == http.HTTPStatus.OK:
            kind, message = "answer", said["results"][0]["error"] or ""
        else:
            kind, message = "refusal", said["error"]["message"]
        if answer.status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
            found.append(("traceback", f"status {answer.status}: {message}"))
        kind = "refusal" if message else kind
    except TimeoutError:
        found.append(("hang", f"no answer within {PATIENCE * limits.seconds:g} s"))
    except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
        found.append(("crash", f"{type(error).__name__}: {error}"))
    megabytes = max(map(peak_megabytes, processes_of(server.pid)), default=0.0)
    if megabytes > limits.megabytes:
        found.append(("memory", f"{megabytes:.0f} MB"))
    found += [(kind, detail) for kind, detail in message_findings(message)]
    return Outcome(kind, tuple(found), time.monotonic() - began, megabytes, message)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first input")
    parser.add_argument("--only", type=int, nargs="+", metavar="INDEX", help="these inputs alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), metavar="FORMAT")
    parser.add_argument("--http", type=int, default=0, metavar="N", help="so many of them to a server, too")
    parser.add_argument(
        "--hang",
        type=float,
        default=LIMITS.seconds,
        help="seconds of the processor that an input may take",
    )
    parser.add_argument("--memory", type=float, default=LIMITS.megabytes, help="MB that a process may take")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="keeps the inputs that findings are about")
    args = parser.parse_args(argv)
    inputs = args.only or range(args.first, args.first + args.inputs)
    limits, formats = Limits(args.hang, args.memory), tuple(args.formats)
    again = f"python benchmarks/fuzz_decoding.py --seed {args.seed}"
    if args.formats != list(FORMATS):
        again += f" --formats {' '.join(args.formats)}"
    found = run(fuzz(inputs, args.seed, formats, limits), "the decoder", again, args.save)
    if args.http:
        found += run(
            fuzz_server(inputs[: args.http], args.seed, formats, limits), "the server", f"{again} --http 1", args.save
        )
    return 1 if found else 0


def run(outcomes: Iterable[tuple[Input, Outcome]], what: str, again: str, save: Path | None) -> int:
    """Print findings and the table of all; how many findings there were."""
    tally, began, count = Tally(), time.monotonic(), 0
    seen: Counter[tuple[str, str]] = Counter()
    for given, outcome in outcomes:
        count += 1
        for finding in tally.add(given, outcome):
            seen[finding.kind, given.format] += 1
            if seen[finding.kind, given.format] > SHOWN:
                continue
            how = ", ".join(given.mutations) or "whole"
            told = f"{given.format}, {len(given.content)} bytes, {how}: {finding.detail}"
            print(f"{again} --only {given.index}  {finding.kind}: {told}", flush=True)
            if save is not None:
                save.mkdir(parents=True, exist_ok=True)
                (save / f"{given.index}_{given.format}").write_bytes(given.content)
    seconds = time.monotonic() - began
    print(f"{what}: {count:,} inputs in {seconds:.0f} s, {count / seconds:.0f} a second\n{tally.table()}")
    kinds = Counter(finding.kind for finding in tally.findings)
    print("findings: " + (", ".join(f"{n} {kind}" for kind, n in kinds.most_common()) or "none"), flush=True)
    return len(tally.findings)


if __name__ == "__main__":
    sys.exit(main())
