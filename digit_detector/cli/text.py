"""Escaping of text for a terminal."""

from __future__ import annotations


def escape_controls(text: str) -> str:
    """The text on one line, with everything escaped that would control a terminal.

    These are control characters (Unicode's Cc; ESC begins colours, titles and clipboard access), marks that change the
    direction of writing, and lone surrogates, which stand for bytes of a name that are not valid text.
    """
    return "".join(
        char if char.isprintable() or (char.isspace() and char not in _BREAKS) else ascii(char)[1:-1] for char in text
    )


_BREAKS = frozenset("\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\u2028\u2029")
