"""A table of text for the terminal, Markdown and pages, and numbers as every report shows them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

_CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]")


class Cell(str):
    """The text of a cell; on a page also in bold, shaded (0 to 1) or a link to a section."""

    best: bool
    shade: float
    link: str

    def __new__(cls, text: str, best: bool = False, shade: float = 0.0, link: str = "") -> Cell:
        cell = super().__new__(cls, text)
        cell.best, cell.shade, cell.link = best, shade, link
        return cell


@dataclass(frozen=True)
class Table:
    """Rows of cells under a heading; the first column names the row."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        """Aligned columns for a terminal."""
        rows = [tuple(map(_one_line, row)) for row in (self.header, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(c.ljust(width) for c, width in zip(row, widths, strict=True)).rstrip() for row in rows)
        return "\n".join([self.title, *(f"  {line}" for line in lines)])

    def markdown(self) -> str:
        def line(cells: Iterable[str]) -> str:
            return "| " + " | ".join(_one_line(cell).replace("|", "\\|") for cell in cells) + " |"

        ruler = "|---|" + "---:|" * (len(self.header) - 1)
        return "\n".join([f"*{self.title}*", "", line(self.header), ruler, *map(line, self.rows)])


def _one_line(cell: str) -> str:
    """Control characters, which could move a terminal's cursor, as Python escapes them."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], cell)


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %" if math.isfinite(share) else "-"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def format_number(value: float | None, form: str, before: str = "") -> str:
    """A number, or "-" for None, infinity or NaN."""
    return "-" if value is None or not math.isfinite(value) else f"{before}{value:{form}}"
