"""Print a Markdown table of code lines by package, sub-package and folder.

    python tools/count_lines.py [ROOT]

Every line of a file counts: code, docstrings, comments and blank lines. Python of the two packages, tests, benchmarks,
tools and examples; the page's JavaScript without what others wrote (static/vendor).
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

PACKAGES = ("digit_detector", "ml_training")
FOLDERS = ("tests", "benchmarks", "tools", "examples")


def table(root: Path) -> list[str]:
    """Rows of Markdown for the checkout `root`: the packages and their parts, their sum, then everything else."""
    rows, everything = ["| | files | lines |", "|---|---:|---:|"], []
    for package in PACKAGES:
        files = sorted((root / package).rglob("*.py"))
        parts = defaultdict(list)
        for file in files:
            below = file.relative_to(root / package).parts
            parts[f"{package}/{below[0] if len(below) > 1 else '*.py'}"].append(file)
        rows += [_row(f"**{package}**", files), *(_row(name, parts[name]) for name in sorted(parts))]
        everything += files
    rows.append(_row("**both packages**", everything))
    rows += [_row(folder, sorted((root / folder).rglob("*.py"))) for folder in FOLDERS]
    scripts = [file for file in (root / "digit_detector").rglob("*.js") if "vendor" not in file.parts]
    return [*rows, _row("JavaScript of the page", scripts)]


def count_lines(files: Sequence[Path]) -> int:
    """Lines of all `files`, blank ones included."""
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def _row(name: str, files: Sequence[Path]) -> str:
    return f"| {name} | {len(files)} | {count_lines(files):,} |"


def main() -> int:
    """Print the table of this repository, or of the checkout named; returns the exit code."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    if missing := [name for name in PACKAGES if not (root / name).is_dir()]:
        print(f"error: {root} holds no {', '.join(missing)}: name a checkout of this repository", file=sys.stderr)
        return 2
    print("\n".join(table(root)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
