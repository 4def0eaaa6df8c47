"""List, compare, promote and delete model versions: `python ml_training/versions.py` and `digits versions`."""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a script: Python put this folder on the path, where data/ and utils/ hide others' modules
    _here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [os.path.dirname(_here), *(p for p in sys.path if os.path.realpath(p) != _here)]

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from digit_detector.cli.parser import OneLineParser
from digit_detector.cli.program import program
from digit_detector.errors import DigitError, ModelError
from digit_detector.files import check_not_shipped
from digit_detector.labels import PRETRAINED, model_folder, trained_pipelines
from digit_detector.versions import Status, read_status, read_version, version_numbers
from ml_training.deploy import version_store, version_tables
from ml_training.utils.console import print_note

# action -> fewest and most version numbers, help
ACTIONS = {
    "list": (0, 0, "every version, the promoted one marked, damaged ones named"),
    "show": (0, 1, "all of one version; without a number of the promoted one"),
    "compare": (2, 99, "differences between two versions or more, and their figures"),
    "promote": (1, 1, "make a version the one that is used"),
    "rollback": (0, 0, "promote the version that was promoted before"),
    "prune": (0, 0, "delete all but the newest --keep versions and the promoted one; only listed without --yes"),
}
FOR_ALL = ("list", "prune")  # take all pipelines unless --pipeline names one

Result = tuple[Any, list[str], bool]  # values for JSON, lines, whether something is damaged


def parser() -> OneLineParser:
    """The command's arguments."""
    flags = OneLineParser(description="List, compare, promote and delete the versions that trainings left.")
    add = flags.add_argument
    text = "; ".join(f"{name}: {what}" for name, (_, _, what) in ACTIONS.items())
    add("action", choices=ACTIONS, metavar="ACTION", help=text)
    add("numbers", nargs="*", type=int, metavar="NUMBER", help="of versions: show 3, compare 2 3, promote 3")
    add("--models_dir", "--model_dir", default="models", metavar="DIR", help="folder of trained models")
    add("--pipeline", metavar="NAME", help="whose versions; not needed where only one pipeline has any")
    add("--keep", type=int, metavar="N", help="how many of the newest versions prune keeps, beside the promoted one")
    add("--yes", action="store_true", help="prune deletes; without it, it only lists")
    add("--json", action="store_true", help="JSON instead of lines")
    return flags


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code, 1 where something is damaged."""
    flags = parser()
    args = flags.parse_args(argv)
    fewest, most, _ = ACTIONS[args.action]
    if not fewest <= len(args.numbers) <= most:
        expected = f"{fewest}" if fewest == most else f"{fewest} to {most}" if most < 99 else f"{fewest} or more"
        flags.error(f"{args.action} takes {expected} version numbers, got {len(args.numbers)}")
    if args.action != "prune" and (args.keep is not None or args.yes):
        flags.error("--keep and --yes belong to prune")
    if args.action == "prune" and args.keep is None:
        flags.error("prune needs --keep N, the number of versions that stay")
    check_not_shipped(args.models_dir)
    folders = _find_pipelines(args)
    if len(folders) > 1 and args.action not in FOR_ALL:
        names = " or ".join(folders)
        flags.error(f"several pipelines have versions in {args.models_dir}: name one, --pipeline {names}")
    run = {"list": _list, "show": _show, "compare": _compare, "prune": _prune}.get(args.action, _promote)
    results = [run(args, pipeline, folder) for pipeline, folder in folders.items()]
    values = [value for value, _, _ in results]
    if args.json:
        print(json.dumps(values if args.action in FOR_ALL else values[0], indent=2))
    else:
        print("\n\n".join("\n".join(lines) for _, lines, _ in results))
    return int(any(damaged for _, _, damaged in results))


def _find_pipelines(args: Namespace) -> dict[str, Path]:
    """The pipelines that have versions, and their folders. Raises ModelError without any."""
    names = trained_pipelines(args.models_dir) if args.pipeline is None else (args.pipeline,)
    folders = {name: model_folder(args.models_dir, name) for name in names}
    found = {name: folder for name, folder in folders.items() if version_numbers(folder)}
    if not found:
        whose = "" if args.pipeline is None else f" of {args.pipeline}"
        raise ModelError(
            f"{args.models_dir} holds no versions{whose} (looked in {Path(args.models_dir).absolute()}): "
            "every finished training adds one; name another folder with --models_dir, or predict with the models that "
            f"ship: digits predict --model_dir {PRETRAINED}"
        )
    return found


def _read_status(folder: Path) -> Status:
    """Read everything, after recovery where this process may write."""
    try:
        version_store.recover(folder, print_note)
    except DigitError as error:
        print_note(str(error))
    return read_status(folder)


def _list(args: Namespace, pipeline: str, folder: Path) -> Result:
    status = _read_status(folder)
    lines = version_tables.format_list(pipeline, folder, status)
    return version_tables.list_values(pipeline, folder, status), lines, status.damaged


def _show(args: Namespace, pipeline: str, folder: Path) -> Result:
    status = _read_status(folder)
    promoted = status.promotions.promoted
    number = args.numbers[0] if args.numbers else promoted
    if number is None:
        raise ModelError(f"no version is promoted in {folder}: name a number of digits versions list")
    read_version(folder, number)  # raises where there is no such version
    entry = next(entry for entry in status.versions if entry.number == number)
    values = version_tables.version_values(folder, entry, promoted)
    return values, version_tables.format_version(values), bool(entry.faults)


def _compare(args: Namespace, pipeline: str, folder: Path) -> Result:
    versions = [read_version(folder, number) for number in args.numbers]
    values = {"versions": args.numbers, "differences": version_tables.find_differences(versions)}
    return values, version_tables.format_comparison(versions), False


def _promote(args: Namespace, pipeline: str, folder: Path) -> Result:
    if args.action == "promote":
        promoted, before = args.numbers[0], version_store.promote(folder, args.numbers[0], print_note)
    else:
        promoted, before = version_store.roll_back(folder, print_note)
    line = f"{pipeline}: version {promoted} is promoted"
    line += f", before it was {before}" if before not in (None, promoted) else ""
    return {"pipeline": pipeline, "promoted": promoted, "before": before}, [line], False


def _prune(args: Namespace, pipeline: str, folder: Path) -> Result:
    old, kept = version_store.prune(folder, args.keep, delete=args.yes, report=print_note)
    former = {"goes": old, "stays": kept}  # their names in 0.1
    values = {"pipeline": pipeline, "to_delete": old, "to_keep": kept, **former, "deleted": args.yes}
    old_text, kept_text = (", ".join(map(str, numbers)) or "none" for numbers in (old, kept))
    lines = [f"{pipeline}: {'deleted' if args.yes else 'would delete'} {old_text}; {kept_text} stay"]
    return values, [*lines, *(["nothing was deleted: --yes does it"] if old and not args.yes else [])], False


if __name__ == "__main__":
    sys.exit(main())
