"""The benchmarks of the web application: what they compute of what they saw, and where they write it."""

import base64

import attacks
import numpy as np
import pytest
import web_load
import web_page
from web_page import RATE


def seen(sound: np.ndarray, skipped: int, shown: list[tuple[str, float]], late: float = 12.0) -> dict[str, object]:
    """What a page would have sent that began to listen `skipped` samples into `sound`, its clock at 5,000 ms then."""
    sent = (32767 * sound[skipped:]).astype("<i2")
    ends = range(1024, len(sent) + 1, 1024)
    rng = np.random.default_rng(2)
    arrivals = [[5000 + 1000 * end / RATE + (late * rng.random() if n else 0.0), end] for n, end in enumerate(ends)]
    return {
        "sound": base64.b64encode(sent.tobytes()).decode(), "arrivals": arrivals, "weight": 1, "paint": 2.0, "axe": 0,
        "told": [[digit, 5000 + 1000 * (second - skipped / RATE)] for digit, second in shown],
    }  # fmt: skip


def test_delays_are_from_the_end_of_a_word_however_late_the_page_began_to_listen():
    sound = 0.1 * np.random.default_rng(1).standard_normal(12 * RATE)
    ends = [(7, 3.0), (3, 5.0), (9, 7.0), (1, 11.9)]  # the last came too late to be shown
    shown = [("7", 3.25), ("8", 5.2), ("9", 6.9), ("9", 7.3)]
    found = web_page.figures(seen(sound, 30_001, shown), sound, ends)
    assert (found["digits"], found["shown"]) == ("739", "7899")
    assert (found["said"], found["wrong"], found["more"]) == (3, 1, 2)
    assert found["delays"] == pytest.approx([250, -100], abs=1)


def test_the_tables_stand_between_their_marks(tmp_path, monkeypatch):
    run = {"said": 20, "wrong": 1, "more": 0, "delays": [300, 250], "weight": 76_000, "paint": 220.4, "axe": 0}
    page = tmp_path / "web.md"
    page.write_text("before\n<!-- page:begin -->\nold\n<!-- page:end -->\nafter\n", encoding="utf-8")
    monkeypatch.setattr(web_load, "PAGE", page)
    web_load.write_table("page", web_page.table({"server": [run, run], "browser": [run]}))
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- page:begin -->\n| | server | browser |\n")
    assert text.endswith("|\n<!-- page:end -->\nafter\n")
    assert "| digits said, missed or mistaken, too many | 40, 2, 0 | 20, 1, 0 |" in text
    assert "old" not in text


def test_attacks_are_printed_in_a_table():
    none = {"ms": 5.0, "detected": "739", "digits": 3, "server_mb": 100.0, "decoder_mb": 50.0, "most_ms": 9.0}
    other = {**none, "ratio": 1.2, "lost": 1, "server_mb": 120.0, "answers": {"422": 8, "503": 1}}
    rows = [
        {"name": "flac", "title": "FLAC", "other": other, "same": {**other, "ratio": 9.0, "decoder_mb": 60.0}},
        {"name": "dearest", "title": "dear", "other": other},
    ]
    table = attacks.table({"alone": none, "attacks": rows})
    assert "| FLAC | 422, 503 | 1.2 / 9.0 | 9 / 9 | 2 | 120, 60 |" in table
    assert "| dear | 422, 503 | 1.2 | 9 | 1 | 120, 50 |" in table
    assert attacks.lost("7390", "739") == 1
    assert attacks.lost("7390", "0739") == 1
