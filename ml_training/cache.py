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
from collections.abc import Sequence

from digit_detector.cli.parser import OneLineParser
from digit_detector.cli.program import program
from ml_training.data.feature_cache import FOLDER_VARIABLE, Cache, Entry

ACTIONS = {
    "list": "every entry, the one used last first; --check reads all of each and removes what is damaged",
    "limit": "limit the size of all entries together (2GB, 500MB) and remove the oldest beyond that",
    "clear": "remove every entry",
}
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Run one action; returns the exit code, 1 if an entry was damaged."""
    parser = OneLineParser(
        description="The cache of decoded recordings, synthetic voices and features, in "
        f"${FOLDER_VARIABLE} or the system's cache folder."
    )
    described = "; ".join(f"{name}: {what}" for name, what in ACTIONS.items())
    parser.add_argument("action", nargs="?", default="list", choices=ACTIONS, metavar="ACTION", help=described)
    parser.add_argument("size", nargs="?", metavar="SIZE", help="of limit")
    parser.add_argument("--check", action="store_true", help="of list: read every byte")
    parser.add_argument("--json", action="store_true", help="JSON instead of lines")
    args = parser.parse_args(argv)
    limits = args.action == "limit"
    if (args.size is None) == limits:
        parser.error("limit takes a size, as in: limit 2GB" if limits else f"{args.action} takes no size")
    if args.check and args.action != "list":
        parser.error("--check belongs to list")
    cache = Cache()
    if args.action == "list":
        return _list(cache, args.check, args.json)
    removed = cache.set_limit(_bytes(args.size, parser)) if limits else cache.clear()
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
        return int(bool(damaged))
    for entry in entries:
        fault = f"   damaged, removed: {entry.fault}" if entry.fault else ""
        print(f"{format_size(entry.bytes):>10}   used {_ago(entry.used):<12}   {entry.path.name}{fault}")
    kept = _count([entry for entry in entries if not entry.fault], "kept")
    print(f"{cache.folder}: {kept}, limit {format_size(cache.limit)}")
    return int(bool(damaged))


def format_size(count: float) -> str:
    """A number of bytes for people: 3.2 GB."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.1f} MB" if unit == "MB" else f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _count(entries: Sequence[Entry], what: str) -> str:
    named = "1 entry" if len(entries) == 1 else f"{len(entries)} entries"
    return f"{named} of {format_size(sum(entry.bytes for entry in entries))} {what}"


def _row(entry: Entry) -> dict[str, object]:
    names = ("kind", "bytes", "used", "fault")
    return {"file": str(entry.path), **{name: getattr(entry, name) for name in names}}


def _ago(moment: float) -> str:
    minutes = max(0.0, time.time() - moment) / 60
    if minutes < 60:
        return f"{minutes:.0f} min ago"
    return f"{minutes / 60:.0f} h ago" if minutes < 48 * 60 else f"{minutes / 60 / 24:.0f} days ago"


def _bytes(text: str, parser: OneLineParser) -> int:
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)\s*([kmgt]b)?", text.strip().lower())
    if match is None:
        parser.error(f"limit {text!r} is no size: expected a number of bytes, or one with kB, MB, GB or TB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


if __name__ == "__main__":
    sys.exit(main())
