"""Live audio through /ws: digits come out, and no client disturbs the others."""

import asyncio
import contextlib
import dataclasses
import io
import json
import os
import signal
import socket as tcp
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from digit_detector import StreamingDetector, load_config
from digit_detector.streaming.config import CONTEXTS
from digit_detector.webapp.limits import ServerLimits

RATE = 8000
TALK = [7, 3, 7]
PIECE = 512  # samples


pytestmark = pytest.mark.anyio
proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="worker processes are found through /proc")


@pytest.fixture(scope="module")
def talk(bundled: dict[int, np.ndarray]) -> np.ndarray:
    """The digits of TALK with pauses, 16-bit samples at 8 kHz."""
    pause = np.zeros(RATE)
    parts = (part for digit in TALK for part in (0.3 * bundled[digit] / np.abs(bundled[digit]).max(), pause))
    wave = np.concatenate([pause, *parts])
    rng = np.random.default_rng(0)
    return (32767 * np.clip(wave + 1e-3 * rng.standard_normal(len(wave)), -1, 1)).astype("<i2")


def socket(address: str, path: str = "/ws", **options) -> connect:
    return connect(address.replace("http", "ws") + path, compression=None, open_timeout=20, **options)


async def start(link: ClientConnection, rate: int = RATE, **options: object) -> dict:
    await link.send(json.dumps({"type": "start", "sample_rate": rate, "protocol": 2, **options}))
    return json.loads(await link.recv())


async def stream(
    link: ClientConnection, samples: np.ndarray, pace: float = 1.0, piece: int = PIECE, **options: object
) -> list[dict]:
    """Send a whole stream at `pace` times real time -> all messages up to "stopped"."""
    loop = asyncio.get_running_loop()
    assert (await start(link, **options))["type"] == "ready"

    async def send() -> None:
        began = loop.time()
        for first in range(0, len(samples), piece):
            await asyncio.sleep(max(0.0, began + first / RATE / pace - loop.time()))
            await link.send(samples[first : first + piece].tobytes())
        await link.send('{"type":"stop"}')

    sending = asyncio.ensure_future(send())
    messages = []
    while not messages or messages[-1]["type"] != "stopped":
        messages.append(json.loads(await asyncio.wait_for(link.recv(), 20)))
    await sending
    return messages


def digits(messages: list[dict]) -> list[dict]:
    return [{k: v for k, v in message.items() if k != "type"} for message in messages if message["type"] == "digit"]


async def refused(link: ClientConnection) -> tuple[str, int]:
    """The code of the error message, and of the close frame."""
    code = ""
    try:
        while True:
            message = json.loads(await asyncio.wait_for(link.recv(), 20))
            if message["type"] == "error":
                code = message["code"]
                assert message["message"]
    except ConnectionClosed as closed:
        return code, closed.rcvd.code


async def open_sockets(links: contextlib.AsyncExitStack, address: str, count: int, **options) -> list[ClientConnection]:
    return [await links.enter_async_context(socket(address, **options)) for _ in range(count)]


async def detect(address: str, samples: np.ndarray, path: str = "/ws", pace: float = 1.5) -> list[int]:
    """The digits of a stream."""
    async with socket(address, path) as link:
        return [d["digit"] for d in digits(await stream(link, samples, pace))]


@pytest.mark.parametrize("context", CONTEXTS)
async def test_detections_equal_those_of_the_detector(server, talk, context):
    detector = StreamingDetector(context)
    detections = [*detector.feed(talk, RATE), *detector.flush()]
    async with socket(server, origin=server) as link:
        messages = await stream(link, talk, pace=1.5, context=context)
        again = await stream(link, talk, pace=1.5, piece=1600, context=context)
    expected = [{k: pytest.approx(v, abs=1e-3) for k, v in dataclasses.asdict(d).items()} for d in detections]
    spoken = iter(TALK)
    assert detections
    assert all(d.digit in spoken for d in detections)  # in context any a faint one may be missed
    assert digits(messages) == digits(again) == expected
    states = [message for message in messages if message["type"] == "status"]
    assert states[-1]["frames"] == -(-len(talk) // PIECE)
    assert [s["frames"] for s in states] == sorted(s["frames"] for s in states)
    assert max(s["voice"] for s in states) > 0.5
    assert messages[-1]["seconds"] == pytest.approx(len(talk) / RATE, abs=0.05)


async def test_provisional_digits_precede_those_of_an_utterance(server, talk):
    async with socket(server) as link:
        messages = await stream(link, talk, pace=1.5)
        other = await stream(link, talk, pace=1.5, context="any")
    seen: list[str] = []
    for message in messages:
        if message["type"] == "digit":
            assert seen[-1] == f"so far {message['digit']}"
            seen.append(str(message["digit"]))
        elif message["type"] == "status" and message["provisional"]:
            (digit,) = message["provisional"]
            assert digit.keys() == {"digit", "confidence", "start", "end", "delay"}
            seen.append(f"so far {digit['digit']}")
    assert [text for text in seen if "so far" not in text] == [*map(str, TALK)]
    assert [m["provisional"] for m in messages if m["type"] == "status"][-1] == []
    assert not any(message.get("provisional") for message in other)


async def test_the_context_is_that_of_the_server_unless_the_client_names_one(serving):
    with serving(ServerLimits(port=0, workers=1), config=load_config(context="any")) as address:
        for options, expected in (({}, "any"), ({"context": "digits"}, "digits")):
            async with socket(address) as link:
                assert (await start(link, **options))["context"] == expected


async def test_protocol_1_is_still_served(serving, talk, caplog):
    statuses = []
    with serving(ServerLimits(port=0, workers=1)) as address:
        for options in ({"protocol": 2}, {}, {"protocol": 1}):
            async with socket(address) as link:
                await link.send(json.dumps({"type": "start", "sample_rate": RATE, **options}))
                assert json.loads(await link.recv())["type"] == "ready"
                await link.send(talk[:PIECE].tobytes())
                statuses.append(json.loads(await asyncio.wait_for(link.recv(), 20)))
    assert [status["type"] for status in statuses] == ["status", "heard", "heard"]
    assert all(s.keys() == {"type", "frames", "seconds", "level_db", "voice", "provisional"} for s in statuses)
    assert sum("protocol 1 is deprecated" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("messages", "code", "close"),
    [
        ([b"\0\0"], "not_started", 1008),
        (["hello"], "bad_message", 1008),
        (["[" * 900], "bad_message", 1008),
        (["{}" * 600], "bad_message", 1008),
        (['{"type":"stop"}'], "bad_message", 1008),
        (['{"type":"start"}'], "bad_rate", 1008),
        (['{"type":"start","sample_rate":8000,"protocol":3}'], "bad_message", 1008),
        (['{"type":"start","sample_rate":8000,"protocol":[2]}'], "bad_message", 1008),
        (['{"type":"start","sample_rate":8000,"context":"all"}'], "bad_message", 1008),
        (['{"type":"start","sample_rate":8000,"context":["any"]}'], "bad_message", 1008),
        (['{"type":"start","sample_rate":0}'], "bad_rate", 1008),
        (['{"type":"start","sample_rate":true}'], "bad_rate", 1008),
        (['{"type":"start","sample_rate":1e300}'], "bad_rate", 1008),
        (['{"type":"start","sample_rate":8000}'] * 2, "started", 1008),
        (['{"type":"start","sample_rate":8000}', "sound"], "bad_message", 1008),
        (['{"type":"start","sample_rate":8000}', b"\0\0\0"], "bad_audio", 1008),
        (['{"type":"start","sample_rate":48000}', bytes(70_000)], "too_large", 1009),
        (['{"type":"start","sample_rate":48000}', bytes(1 << 20)], "", 1009),
        (['{"type":"start","sample_rate":8000}', *[bytes(16_000)] * 10], "too_fast", 1008),
        (['{"type":"start","sample_rate":48000}', *[b"\0\0"] * 300], "too_many", 1008),
        (['{"type":"start","sample_rate":8000}', '{"type":"stop"}', b"\0\0"], "not_started", 1008),
    ],
)  # fmt: skip
async def test_invalid_messages_are_rejected(server, messages, code, close):
    async with socket(server) as link:
        with contextlib.suppress(ConnectionClosed):
            for message in messages:
                await link.send(message)
        assert await refused(link) == (code, close)


async def test_silent_sockets_time_out(serving, talk):
    limits = ServerLimits(port=0, start_seconds=1.0, idle_seconds=1.0, connections_per_client=250)
    with serving(limits) as address:
        async with contextlib.AsyncExitStack() as links:
            silent = await open_sockets(links, address, 105)
            for link in silent[:5]:
                await start(link)
            assert await detect(address, talk) == TALK
            ends = await asyncio.gather(*(refused(link) for link in silent))
        assert set(ends) == {("idle", 1008)}
        assert httpx.get(f"{address}/health").json()["streams"] == 0


@pytest.mark.skipif(not hasattr(tcp, "TCP_USER_TIMEOUT"), reason="only Linux gives up those who do not read in time")
@pytest.mark.parametrize("pings", [1, 100])
def test_clients_that_do_not_read_lose_their_stream(serving, pings):
    def frame(kind: int, content: bytes) -> bytes:
        return bytes([0x80 | kind, 0x80 | len(content)]) + bytes(4) + content  # the mask is of zeros

    with serving(ServerLimits(port=0, unread_seconds=1)) as address, tcp.socket() as link:
        link.setsockopt(tcp.SOL_SOCKET, tcp.SO_RCVBUF, 2048)
        host, port = address.removeprefix("http://").split(":")
        link.settimeout(10)
        link.connect((host, int(port)))
        link.sendall(
            f"GET /ws HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        assert b" 101 " in link.recv(1000)
        link.setblocking(False)
        left = frame(1, b'{"type":"start","sample_rate":8000}')
        for _ in range(200):
            with contextlib.suppress(OSError):
                left = left[link.send(left) :]
            left = left or frame(2, bytes(100)) + pings * frame(9, bytes(120))
            time.sleep(0.01)
        assert httpx.get(f"{address}/stats").json()["live"]["seconds"] > 0
        until = time.monotonic() + 15
        while httpx.get(f"{address}/health").json()["streams"]:
            assert time.monotonic() < until
            time.sleep(0.1)


async def test_stream_limit_and_eviction_of_idle_sockets(serving):
    with serving(ServerLimits(port=0, streams=2, connections=4)) as address:
        async with contextlib.AsyncExitStack() as stack:
            links = await open_sockets(stack, address, 4)
            for link in links[:2]:
                assert (await start(link))["type"] == "ready"
            await links[3].send('{"type":"start","sample_rate":8000}')
            assert await refused(links[3]) == ("busy", 1013)
            await open_sockets(stack, address, 2)
            assert await refused(links[2]) == ("busy", 1013)
            assert (await start(links[0]))["code"] == "started"  # a socket with a stream is never closed for another


async def test_one_client_cannot_exhaust_the_limits(serving):
    """127.0.0.2 opens every stream and socket that it can; 127.0.0.1 still gets a stream."""
    attacker = {"local_addr": ("127.0.0.2", 0)}
    limits = ServerLimits(port=0, streams=6, streams_per_client=4, connections=10, connections_per_client=6)
    with serving(limits) as address:
        async with contextlib.AsyncExitStack() as stack:
            links = await open_sockets(stack, address, 6, **attacker)
            (seventh,) = await open_sockets(stack, address, 1, **attacker)
            assert await refused(seventh) == ("busy", 1013)
            assert [(await start(link)).get("code", "ready") for link in links] == ["ready"] * 4 + ["busy"] * 2
            for unread in (0, 20):  # connections that never send anything are limited, too
                for _ in range(unread):
                    _, writer = await asyncio.open_connection(*address.removeprefix("http://").split(":"), **attacker)
                    stack.callback(writer.close)
                async with socket(address) as honest:
                    assert (await start(honest))["type"] == "ready"


@pytest.mark.parametrize(("count", "is_started"), [(150, True), (250, False)], ids=["150 slow", "250 idle"])
async def test_an_honest_stream_works_during_an_attack(serving, talk, count, is_started):
    async def hold(address: str) -> None:
        while True:  # reconnects whenever it is closed
            with contextlib.suppress(OSError, InvalidHandshake, ConnectionClosed):
                async with socket(address, local_addr=("127.0.0.2", 0)) as link:
                    if is_started:
                        await link.send('{"type":"start","sample_rate":8000}')
                        await link.send(b"\0\0")
                    await link.wait_closed()
            await asyncio.sleep(0.5)

    held = "digits_streams 40.0" if is_started else "digits_connections 64.0"
    with serving() as address:
        attackers = [asyncio.ensure_future(hold(address)) for _ in range(count)]
        async with httpx.AsyncClient() as client:
            for _ in range(600):  # until it holds all that one address may have
                if held in (await client.get(f"{address}/metrics")).text:
                    break
                await asyncio.sleep(0.05)
            else:
                raise AssertionError(f"the attack never got {held}")
        assert await detect(address, talk) == TALK
        for attacker in attackers:
            attacker.cancel()
        await asyncio.gather(*attackers, return_exceptions=True)


@pytest.mark.parametrize("behaviour", ["two bytes", "nothing", "start and stop"])
async def test_streams_without_audio_are_closed(serving, behaviour):
    async def trickle(link: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            while behaviour != "nothing":
                await link.send(b"\0\0")
                await asyncio.sleep(0.3)
                if behaviour == "start and stop":
                    await link.send('{"type":"stop"}')
                    await asyncio.sleep(0.1)
                    await link.send('{"type":"start","sample_rate":8000}')

    with serving(ServerLimits(port=0, slow_seconds=1.0)) as address:
        async with socket(address) as link:
            await start(link)
            sending = asyncio.ensure_future(trickle(link))
            try:
                assert await refused(link) == ("too_slow", 1008)
            finally:
                sending.cancel()


async def test_sessions_collect_digits_and_keep_audio_on_request(server, talk):
    for keep in (False, True):
        session = httpx.post(f"{server}/sessions", json={"keep_audio": keep}).json()["id"]
        await detect(server, talk, f"/ws?session={session}")
        info = httpx.get(f"{server}/sessions/{session}").json()
        assert (info["digits"], info["streams"]) == ("737", 1)
        assert info["seconds"] == pytest.approx(len(talk) / RATE)
        sound = httpx.get(f"{server}/sessions/{session}/audio")
        if keep:
            samples, rate = soundfile.read(io.BytesIO(sound.content), dtype="int16")
            assert rate == RATE
            np.testing.assert_array_equal(samples, talk)
        else:
            assert sound.status_code == 404
        httpx.delete(f"{server}/sessions/{session}")
    async with socket(server, "/ws?session=../../etc") as link:
        assert (await refused(link))[0] == "no_session"


async def test_kept_audio_is_limited(serving, talk):
    with serving(ServerLimits(port=0, kept_bytes=4000)) as address:
        session = httpx.post(f"{address}/sessions", json={"keep_audio": True}).json()["id"]
        await detect(address, talk[:RATE], f"/ws?session={session}", pace=2.0)
        sound = httpx.get(f"{address}/sessions/{session}/audio")
        assert len(sound.content) < 4100
        assert sound.headers["x-truncated"] == "true"


def worker_processes() -> set[int]:
    """Worker processes of the servers of this process."""
    children: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has just ended
            children.update((task / "children").read_text().split())
    return {int(pid) for pid in children if b"webapp.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()}


async def wait_for_health(address: str, until: Callable[[httpx.Response], bool]) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        for _ in range(600):
            if until(answer := await client.get(f"{address}/health")):
                return answer
            await asyncio.sleep(0.05)
    raise AssertionError(answer.text)


@proc
async def test_a_dead_worker_is_replaced(serving, talk):
    before = worker_processes()
    with serving(ServerLimits(port=0, workers=1)) as address:
        async with socket(address) as link:
            await start(link)
            await link.send(talk[:PIECE].tobytes())
            assert json.loads(await link.recv())["type"] == "status"
            (worker,) = worker_processes() - before
            os.kill(worker, signal.SIGKILL)
            assert await refused(link) == ("restarted", 1013)
        await wait_for_health(address, lambda answer: answer.json()["status"] == "ok")
        assert await detect(address, talk) == TALK


@proc
async def test_a_hung_worker_gets_no_streams_and_is_replaced(serving, talk):
    before = worker_processes()
    with serving(ServerLimits(port=0, workers=2, worker_seconds=4.0, slow_seconds=60.0)) as address:
        async with contextlib.AsyncExitStack() as stack:
            links = await open_sockets(stack, address, 2)  # one for each process
            for link in links:
                assert (await start(link))["type"] == "ready"
            stopped, other = sorted(worker_processes() - before)
            os.kill(stopped, signal.SIGSTOP)
            answer = await wait_for_health(address, lambda answer: answer.json()["status"] == "degraded")
            assert (answer.status_code, answer.json()["workers_alive"]) == (200, 1)
            assert await asyncio.gather(detect(address, talk), detect(address, talk)) == [TALK] * 2
            ends = [asyncio.ensure_future(refused(link)) for link in links]
            done, still_open = await asyncio.wait(ends, timeout=30, return_when=asyncio.FIRST_COMPLETED)
            assert [end.result() for end in done] == [("restarted", 1013)]
            for end in still_open:
                end.cancel()
            answer = await wait_for_health(address, lambda answer: answer.json()["status"] == "ok")
            assert (answer.status_code, answer.json()["workers_alive"]) == (200, 2)
            assert stopped not in worker_processes()
            assert other in worker_processes()
        assert "digits_worker_restarts_total 1.0" in httpx.get(f"{address}/metrics").text


@proc
async def test_without_a_worker_health_is_503(serving):
    before = worker_processes()
    with serving(ServerLimits(port=0, workers=1, worker_seconds=4.0)) as address:
        (worker,) = worker_processes() - before
        os.kill(worker, signal.SIGSTOP)
        answer = await wait_for_health(address, lambda answer: answer.status_code != 200)
        assert (answer.status_code, answer.json()["status"], answer.json()["workers_alive"]) == (503, "degraded", 0)
        async with socket(address) as link:
            assert (await start(link))["code"] == "restarted"
