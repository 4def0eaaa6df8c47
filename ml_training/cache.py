"""List, bound and clear the cache of arrays: `python ml_training/cache.py` and `digits cache`."""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a script: Python put this folder on the path, where data/ and utils/ hide others' modules
    _here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [os.path.dirname(_here), *(p for p in sys.path if os.path.realpath(p) != _here)]

import contextlib
import json
import re
import time
from collections.abc import Iterator, Sequence

from digit_detector.cli.parser import OneLineParser
from digit_detector.cli.program import program
from ml_training.data.feature_cache import FOLDER_VARIABLE, Cache, Entry

ACTIONS = {
    "list": "every entry, the one used last first; --check reads all of each and removes what is damaged",
    "limit": "let all entries together take so many bytes (2GB, 500MB) and remove the oldest beyond that",
    "clear": "remove every entry",
}
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Run one action; returns the exit code, 1 where an entry was damaged."""
    flags = OneLineParser(
        description="Decoded recordings, synthetic voices and features that were made once and serve every later run. "
        f"They lie in ${FOLDER_VARIABLE}, or where this system keeps what can be made again."
    )
    described = "; ".join(f"{name}: {what}" for name, what in ACTIONS.items())
    flags.add_argument("action", nargs="?", default="list", choices=ACTIONS, metavar="ACTION", help=described)
    flags.add_argument("size", nargs="?", metavar="SIZE", help="of limit")
    flags.add_argument("--check", action="store_true", help="of list: read every byte")
    flags.add_argument("--json", action="store_true", help="JSON instead of lines")
    args = flags.parse_args(argv)
    if (args.size is None) == (args.action == "limit"):
        flags.error(
            "limit takes a size, as in: limit 2GB" if args.action == "limit" else f"{args.action} takes no size"
        )
    if args.check and args.action != "list":
        flags.error("--check belongs to list")
    cache = Cache()
    if args.action == "list":
        return _list(cache, args.check, args.json)
    removed = cache.clear() if args.action == "clear" else cache.set_limit(_bytes(args.size, flags))
    if args.json:
        print(json.dumps({"removed": [_row(entry) for entry in removed], "limit": cache.limit}))
    else:
        print(f"{cache.folder}: {_count(removed, 'removed')}, limit {format_size(cache.limit)}")
    return 0


def _list(cache: Cache, check: bool, as_json: bool) -> int:
    entries = cache.entries(check)
    damaged = [entry for entry in entries if entry.fault]
    for entry in damaged:
        with contextlib.suppress(OSError):
            cache.remove(entry.path)
    if as_json:
        listing = {"folder": str(cache.folder), "limit": cache.limit, "entries": [_row(entry) for entry in entries]}
        print(json.dumps(listing, indent=2))
    else:
        print("\n".join(_lines(cache, entries)))
    return 1 if damaged else 0


def _lines(cache: Cache, entries: Sequence[Entry]) -> Iterator[str]:
    for entry in entries:
        fault = f"   damaged, removed: {entry.fault}" if entry.fault else ""
        yield f"{format_size(entry.bytes):>10}   used {_ago(entry.used):<12}   {entry.path.name}{fault}"
    kept = _count([entry for entry in entries if not entry.fault], "kept")
    yield f"{cache.folder}: {kept}, limit {format_size(cache.limit)}"


def format_size(count: float) -> str:
    """A number of bytes for people: 3.2 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit in ("bytes", "kB") else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def _count(entries: Sequence[Entry], what: str) -> str:
    named = "1 entry" if len(entries) == 1 else f"{len(entries)} entries"
    return f"{named} of {format_size(sum(entry.bytes for entry in entries))} {what}"


def _row(entry: Entry) -> dict[str, object]:
    return {
        "file": str(entry.path), "kind": entry.kind, "bytes": entry.bytes, "used": entry.used, "fault": entry.fault
    }  # fmt: skip


def _ago(moment: float) -> str:
    minutes = max(0.0, time.time() - moment) / 60
    if minutes < 60:
        return f"{minutes:.0f} min ago"
    return f"{minutes / 60:.0f} h ago" if minutes < 48 * 60 else f"{minutes / 60 / 24:.0f} days ago"


def _bytes(typed: str, flags: OneLineParser) -> int:
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)\s*([kmgt]b)?", typed.strip().lower())
    if match is None:
        flags.error(f"limit {typed!r} is no size: expected a number of bytes, or one with kB, MB, GB or TB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


if __name__ == "__main__":
    sys.exit(main())
