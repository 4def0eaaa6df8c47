"""Names of files on a terminal: nothing in them is obeyed, and what can be read stays."""

import pytest

from digit_detector.cli.text import escape_controls


@pytest.mark.parametrize("text", ["a b.wav", "七.wav", "é\\x1b.wav", ""])
def test_what_no_terminal_obeys_stays(text):
    assert escape_controls(text) == text


def test_what_a_terminal_obeys_is_escaped():
    assert escape_controls("\x1b]0;x\x07\x9b2J") == r"\x1b]0;x\x07\x9b2J"
    assert escape_controls("a\r\n\t\x00\x7f") == r"a\r\n\t\x00\x7f"
    assert escape_controls("\u202egnp.wav\u2028") == r"\u202egnp.wav\u2028"
    assert escape_controls("\udc80.wav") == r"\udc80.wav"
    every = "".join(map(chr, (*range(32), *range(127, 160))))
    assert not set(escape_controls(every)) & set(every)
