"""What sessions keep, counted as it comes and goes."""

import sys

from digit_detector.webapp.sessions import Sessions


def test_what_is_kept_is_counted_until_it_is_forgotten():
    now = [0.0]
    sessions = Sessions(most=3, idle_seconds=10.0, kept_bytes=100, clock=lambda: now[0])
    closed, old = sessions.create(keep_audio=True), sessions.create(keep_audio=True)
    for session in (closed, old):
        recording = sessions.begin(session, 8000)
        sessions.hear(session, recording, bytes(40), 8000)
        sessions.end(session)
    assert sessions.kept_bytes == 80
    sessions.hear(closed, recording, bytes(40), 8000)
    assert (sessions.kept_bytes, recording.whole) == (80, False)
    sessions.close(closed.id)
    assert sessions.kept_bytes == 40
    sessions.hear(closed, closed.recordings[0], bytes(40), 8000)
    assert sessions.kept_bytes == 40
    now[0] = 11.0
    assert sessions.all() == []
    assert sessions.kept_bytes == 0


def test_streams_without_end_cost_neither_memory_nor_time():
    sessions = Sessions(most=1, idle_seconds=10.0, kept_bytes=1 << 20)
    session = sessions.create(keep_audio=True)
    first = sessions.begin(session, 8000)
    for _ in range(20_000):
        sessions.begin(session, 8000)
        sessions.end(session)
    assert len(session.recordings) == 1000
    assert session.streams == 20_001
    lines = 0

    def count(*_: object) -> object:
        nonlocal lines
        lines += 1
        return count

    sys.settrace(count)
    sessions.hear(session, first, bytes(2), 8000)
    sys.settrace(None)
    assert lines < 100  # a sum over all of them would take a thousand
