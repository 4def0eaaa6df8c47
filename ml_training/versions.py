"""Versions of trained pipelines: the door behind `python ml_training/versions.py` and `digits versions`."""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a script: Python put this folder on the path, where data/ and utils/ hide others' modules
    _here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [os.path.dirname(_here), *(p for p in sys.path if os.path.realpath(p) != _here)]

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from digit_detector.cli.parser import OneLineParser
from digit_detector.cli.program import program
from digit_detector.errors import DigitError, ModelError
from digit_detector.files import check_not_shipped
from digit_detector.labels import PRETRAINED, model_folder, trained_pipelines
from digit_detector.versions import any_there, read_version, state_of
from ml_training.deploy import version_store
from ml_training.deploy.version_tables import compared, differences, list_values, listed, row_values, shown

# action -> the fewest and the most numbers it takes, what it does
ACTIONS = {
    "list": (0, 0, "every version, the promoted one marked, damaged ones named"),
    "show": (0, 1, "all of one version; without a number of the promoted one"),
    "compare": (2, 99, "what differs between two versions or more, and their figures"),
    "promote": (1, 1, "make a version the one that answers"),
    "rollback": (0, 0, "promote the version that was promoted before"),
    "prune": (0, 0, "delete all but the newest --keep versions and the promoted one; with --yes it really does"),
}


def parser() -> OneLineParser:
    """What may be typed."""
    told = "; ".join(f"{name}: {what}" for name, (_, _, what) in ACTIONS.items())
    flags = OneLineParser(description="List, compare, promote and delete the versions that trainings left.")
    add = flags.add_argument
    add("action", choices=ACTIONS, metavar="ACTION", help=told)
    add("numbers", nargs="*", type=int, metavar="NUMBER", help="of versions: show 3, compare 2 3, promote 3")
    add("--models_dir", "--model_dir", default="models", metavar="DIR", help="folder of trained models")
    add("--pipeline", metavar="NAME", help="whose versions; may be left out where one pipeline alone has any")
    add("--keep", type=int, metavar="N", help="how many of the newest versions prune leaves, beside the promoted one")
    add("--yes", action="store_true", help="prune deletes; without it, it only says what")
    add("--json", action="store_true", help="JSON instead of lines")
    return flags


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Do what the words say; returns the exit code, 1 where something is damaged."""
    flags = parser()
    args = flags.parse_args(argv)
    fewest, most, _ = ACTIONS[args.action]
    if not fewest <= len(args.numbers) <= most:
        wanted = f"{fewest}" if fewest == most else f"{fewest} to {most}" if most < 99 else f"{fewest} or more"
        flags.error(f"{args.action} takes {wanted} version numbers, got {len(args.numbers)}")
    if args.action != "prune" and (args.keep is not None or args.yes):
        flags.error("--keep and --yes belong to prune")
    if args.action == "prune" and args.keep is None:
        flags.error("prune needs --keep N, the number of versions that stay")
    check_not_shipped(args.models_dir)
    if args.action == "list":
        return _list(args, _pipelines(args))
    if args.action == "prune":
        return _prune(args, _pipelines(args))
    pipelines = _pipelines(args)
    if len(pipelines) > 1:
        flags.error(
            f"several pipelines have versions in {args.models_dir}: name one, --pipeline {' or '.join(pipelines)}"
        )
    (pipeline,) = pipelines
    folder = model_folder(args.models_dir, pipeline)
    if args.action == "show":
        return _show(args, folder)
    if args.action == "compare":
        return _compare(args, folder)
    if args.action == "promote":
        change = version_store.promote(folder, args.numbers[0], _say)
    else:
        change = version_store.roll_back(folder, _say)
    before = f", before it was {change.before}" if change.before not in (None, change.promoted) else ""
    _tell(
        args, {"pipeline": pipeline, **asdict(change)}, [f"{pipeline}: version {change.promoted} is promoted{before}"]
    )
    return 0


def _pipelines(args: Namespace) -> list[str]:
    """The pipelines whose versions are meant. Raises ModelError where there are none."""
    wanted = trained_pipelines(args.models_dir) if args.pipeline is None else (args.pipeline,)
    found = [name for name in wanted if any_there(model_folder(args.models_dir, name))]
    if not found:
        whose = "" if args.pipeline is None else f" of {args.pipeline}"
        raise ModelError(
            f"{args.models_dir} holds no versions{whose} (looked in {Path(args.models_dir).absolute()}): "
            "each training that ends leaves one; name another folder with --models_dir, or answer with the models that "
            f"ship: digits predict --model_dir {PRETRAINED}"
        )
    return found


def _settled(folder: Path) -> None:
    """Finish what a killed process began, where this one may write."""
    try:
        version_store.settle(folder, _say)
    except DigitError as error:
        _say(f"{error}")


def _list(args: Namespace, pipelines: Sequence[str]) -> int:
    values: list[dict[str, Any]] = []
    lines: list[str] = []
    damaged = False
    for pipeline in pipelines:
        folder = model_folder(args.models_dir, pipeline)
        _settled(folder)
        state = state_of(folder)
        damaged |= state.damaged
        values.append(list_values(pipeline, folder, state))
        lines += [*([""] if lines else []), *listed(pipeline, folder, state)]
    _tell(args, values, lines)
    return int(damaged)


def _show(args: Namespace, folder: Path) -> int:
    _settled(folder)
    state = state_of(folder)
    number = args.numbers[0] if args.numbers else state.promotions.promoted
    if number is None:
        raise ModelError(f"no version is promoted in {folder}: say which one to show, digits versions list tells them")
    version = read_version(folder, number)
    row = next(row for row in state.rows if row.number == number)
    _tell(args, row_values(folder, row), shown(folder, version, row))
    return int(bool(row.faults))


def _compare(args: Namespace, folder: Path) -> int:
    versions = [read_version(folder, number) for number in args.numbers]
    values = {"versions": args.numbers, "differences": differences(versions)}
    _tell(args, values, compared(versions))
    return 0


def _prune(args: Namespace, pipelines: Sequence[str]) -> int:
    values: list[dict[str, Any]] = []
    lines: list[str] = []
    for pipeline in pipelines:
        pruning = version_store.prune(model_folder(args.models_dir, pipeline), args.keep, really=args.yes, report=_say)
        values.append({"pipeline": pipeline, **asdict(pruning), "deleted": args.yes})
        goes, stays = (", ".join(map(str, numbers)) or "none" for numbers in (pruning.goes, pruning.stays))
        lines.append(f"{pipeline}: {'deleted' if args.yes else 'would delete'} {goes}; {stays} stay")
    if not args.yes and any(value["goes"] for value in values):
        lines.append("nothing was deleted: --yes does it")
    _tell(args, values, lines)
    return 0


def _tell(args: Namespace, values: Any, lines: Sequence[str]) -> None:
    print(json.dumps(values, indent=2) if args.json else "\n".join(lines))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
