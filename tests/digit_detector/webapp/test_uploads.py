"""Uploads: decoded in child processes within limits, with clients in turns."""

import asyncio
import contextlib
import dataclasses
import io
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from audio_bytes import av_file

from digit_detector.audio import decode
from digit_detector.webapp.child_process import READY
from digit_detector.webapp.clients import FairPool
from digit_detector.webapp.decode_worker import DecodeLimits
from digit_detector.webapp.errors import RejectedError
from digit_detector.webapp.limits import ServerLimits
from digit_detector.webapp.uploads import DecodeWorker

pytestmark = pytest.mark.anyio
ODD_DECODER = """
import ctypes, os, socket, sys, time
from digit_detector.webapp import decode_worker

usual = decode_worker.decode_upload

def decode_upload(content, most_seconds, *options):
    kind = content[:4]
    if kind == b"spin":
        while True:
            pass
    if kind == b"wait":
        time.sleep(600)
    if kind == b"soon":
        time.sleep(0.05)
    if kind == b"null":
        ctypes.string_at(0)
    if kind == b"hoard"[:4]:
        bytearray(1 << 30)
    if kind == b"open":
        open(content[4:].decode())
    if kind == b"port":
        socket.socket()
    if kind == b"file":
        os.ftruncate(int(content[4:]), 1 << 20)
    if kind == b"talk":
        print("x" * 100_000, flush=True)
        os.write(1, b"y" * 100_000)
    return usual(content.removeprefix(b"talk"), most_seconds, *options)

decode_worker.decode_upload = decode_upload
sys.exit(decode_worker.main())
"""
LIMITS = DecodeLimits(most_seconds=60.0, cpu_seconds=0.5, wall_seconds=60.0, memory_bytes=100 << 20)
unix = pytest.mark.skipif(sys.platform == "win32", reason="the system has no such limit")


def wav(seconds: float = 0.5, kind: str = "WAV", rate: int = 8000, channels: int = 1, **options: Any) -> bytes:
    file = io.BytesIO()
    samples = 0.1 * np.random.default_rng(0).standard_normal((int(seconds * rate), channels))
    soundfile.write(file, samples, rate, format=kind, **options)
    return file.getvalue()


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders that do what the first four bytes of an upload say."""
    monkeypatch.setattr(DecodeWorker, "command", ("-P", "-c", ODD_DECODER))


@contextlib.asynccontextmanager
async def open_worker(limits: DecodeLimits = LIMITS) -> AsyncIterator[DecodeWorker]:
    worker = DecodeWorker(limits)
    await worker.start()
    try:
        async with asyncio.timeout(60):
            yield worker
    finally:
        await worker.stop()


async def fault(worker: DecodeWorker, content: bytes) -> RejectedError:
    with pytest.raises(RejectedError) as refused:
        await worker.decode(content)
    return refused.value


async def pid(worker: DecodeWorker) -> int:
    await worker.recover()
    return worker.child.pid


async def test_one_process_decodes_uploads_as_the_package_does(odd):
    async with open_worker() as worker:
        first = await pid(worker)
        for content in (
            wav(), wav(kind="FLAC", rate=44_100, channels=2), wav(kind="OGG", rate=48_000),
            wav(kind="MP3", rate=16_000), av_file("webm", "libopus", 48_000),
            av_file("mp4", "aac", 16_000, "fltp"), av_file("adts", "aac", 16_000, "fltp"),
        ):  # fmt: skip
            np.testing.assert_array_equal(await worker.decode(content), decode(content))
            assert await pid(worker) == first
        refused = await fault(worker, wav(61))
        assert (refused.status, refused.code) == (413, "too_long")
        for _ in range(20):
            await worker.decode(wav(20, "FLAC", 48_000))
            assert (await fault(worker, b"RIFF")).code == "bad_audio"
        assert len(await worker.decode(b"talk" + wav())) == 4000  # prints of a library are not in the reply
        assert await pid(worker) == first


@pytest.mark.parametrize(
    ("content", "limits", "message"),
    [
        pytest.param(b"spin", {}, "more than 0.5 s of a processor", marks=unix),
        (b"wait", {"wall_seconds": 0.5}, "more than 0.5 s to decode"),
        (b"null", {}, "made the decoder fail"),
        pytest.param(b"hoar", {}, "more than 100 MB of memory", marks=unix),
    ],
)
async def test_an_upload_that_exceeds_a_limit_ends_only_its_process(odd, content, limits, message):
    async with open_worker(dataclasses.replace(LIMITS, **limits)) as worker:
        before = await pid(worker)
        refused = await fault(worker, content)
        assert (refused.status, refused.code) == (422, "bad_audio")
        assert message in str(refused)
        assert await pid(worker) != before
        assert len(await worker.decode(wav())) == 4000


@unix
@pytest.mark.parametrize("content", [b"open/etc/hostname", b"port", b"file1"])
async def test_decoders_cannot_open_files_or_sockets(odd, content):
    async with open_worker() as worker:
        refused = await fault(worker, content)
        assert refused.code in ("failed", "bad_audio")
        assert "hostname" not in str(refused)
        assert "Traceback" not in str(refused)
        await worker.recover()
        assert len(await worker.decode(wav())) == 4000


@pytest.mark.parametrize(("content", "grace", "is_kept"), [(b"wait", None, False), (b"soon", 60.0, True)])
async def test_a_cancelled_request_keeps_its_process_only_near_its_end(odd, monkeypatch, content, grace, is_kept):
    if grace is not None:
        monkeypatch.setattr("digit_detector.webapp.uploads._GRACE", grace)
    async with open_worker() as worker:
        before = await pid(worker)
        waiting = asyncio.ensure_future(worker.decode(content))
        await asyncio.sleep(0.01 if is_kept else 0.1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await pid(worker) == before) == is_kept
        assert len(await worker.decode(wav())) == 4000


def test_a_decoder_ends_with_the_server_even_while_decoding():
    command = [sys.executable, "-P", "-c", ODD_DECODER, json.dumps(dataclasses.asdict(LIMITS))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == READY
        process.stdin.write(b'{"size": 4, "encoding": null, "rate": null}\nwait')
        process.stdin.close()
        assert process.wait(timeout=60) == 0


async def test_a_decoder_that_ended_while_idle_is_restarted(odd):
    async with open_worker() as worker:
        await worker.child.kill()
        assert (await fault(worker, wav())).code == "busy"
        await worker.recover()
        assert len(await worker.decode(wav())) == 4000


async def test_clients_take_turns():
    pool, served = FairPool(["only"], waiting=10), []

    async def take_turn(client: str) -> None:
        item = await pool.take(client)
        served.append(client)
        await asyncio.sleep(0)
        pool.give_back(client, item)

    first = await pool.take("a")
    tasks = [asyncio.ensure_future(take_turn(client)) for client in "aaaabc"]
    await asyncio.sleep(0)
    pool.give_back("a", first)
    await asyncio.gather(*tasks)
    assert pool.waiting == 0
    assert served == ["a", "b", "c", "a", "a", "a"]


async def test_one_client_never_holds_all_items():
    pool = FairPool([1, 2, 3], waiting=3)
    for _ in range(2):
        await pool.take("a")
    waiting = [asyncio.ensure_future(pool.take("a")) for _ in range(2)]
    await asyncio.sleep(0)
    item = await pool.take("b")
    also = asyncio.ensure_future(pool.take("b"))
    await asyncio.sleep(0)
    with pytest.raises(RejectedError, match="3 recordings wait"):
        await pool.take("c")
    waiting[0].cancel()
    await asyncio.sleep(0)
    assert pool.waiting == 2
    pool.give_back("b", item)
    assert await also == item
    assert not waiting[1].done()  # a has its share
    pool.give_back("a", 1)
    assert await waiting[1] == 1


def post(address: str, content: bytes, client: str = "127.0.0.1") -> httpx.Response:
    transport = httpx.HTTPTransport(local_address=client)
    with httpx.Client(transport=transport, timeout=30) as connection:
        return connection.post(f"{address}/process_audio", files={"file": content}, data={"method": "ml_mfcc"})


def wait_for_uploads(address: str, count: int) -> None:
    until = time.monotonic() + 30
    while not re.search(rf"^digits_uploads {count}\.0$", httpx.get(f"{address}/metrics").text, re.MULTILINE):
        assert time.monotonic() < until, f"there were never {count} uploads"
        time.sleep(0.02)


@contextlib.contextmanager
def sent(address: str, content: bytes, client: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A connection that has sent an upload and read nothing."""
    host, port = address.removeprefix("http://").split(":")
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n' + content + b"\r\n--b--\r\n"
    head = (
        f"POST /process_audio HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(body)}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=30, source_address=(client, 0)) as link:
        link.sendall(head.encode() + body)
        yield link


@pytest.fixture(scope="module")
def odd_server(serving: Callable[..., Any]) -> Iterator[str]:
    """A server with odd decoders, of which one client has one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecodeWorker, "command", ("-P", "-c", ODD_DECODER))
        with serving(ServerLimits(port=0, decode_seconds=600), methods=("ml_mfcc",)) as address:
            yield address


def test_disconnecting_and_crashing_uploads_free_their_place(odd_server):
    for _ in range(2):  # one is decoded and one waits; both go
        with sent(odd_server, b"wait"), sent(odd_server, b"wait"):
            wait_for_uploads(odd_server, 2)
        wait_for_uploads(odd_server, 0)
    for _ in range(3):
        refused = post(odd_server, b"null")
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "bad_audio")
        assert "/" not in refused.json()["error"]["message"]
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(post(odd_server, wav()).status_code)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [200] * 8


@pytest.mark.skipif(sys.platform == "darwin", reason="there is no 127.0.0.2 here")
def test_uploads_of_one_client_do_not_block_others(odd_server):
    with contextlib.ExitStack() as links:
        for _ in range(4):
            links.enter_context(sent(odd_server, b"wait", "127.0.0.2"))
        wait_for_uploads(odd_server, 4)
        assert [post(odd_server, wav()).status_code for _ in range(3)] == [200] * 3


def test_clients_that_do_not_read_are_disconnected(serving):
    """The largest file of the page is more than a socket takes at once."""
    tcp = Path("/proc/net/tcp")
    if not tcp.exists():
        pytest.skip("the system does not show its connections")
    path = "/vendor/onnxruntime-web/ort-wasm-simd-threaded.wasm"
    with serving(ServerLimits(port=0, unread_seconds=1), methods=("ml_mfcc",)) as address, socket.socket() as link:
        host, port = address.removeprefix("http://").split(":")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.connect((host, int(port)))
        link.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        ends = f":{int(port):04X} 0100007F:{link.getsockname()[1]:04X} 01 "  # of the server, established
        until = time.monotonic() + 30
        while ends in tcp.read_text():
            assert time.monotonic() < until, "the connection stays open"
            time.sleep(0.05)
        size = int(httpx.head(f"{address}{path}").headers["Content-Length"])
        came = 0
        link.settimeout(5)
        with contextlib.suppress(OSError):  # hung up
            while part := link.recv(1 << 16):
                came += len(part)
        assert came < size


def test_bodies_of_all_requests_are_limited_together(serving):
    with serving(ServerLimits(port=0, upload_bytes=100_000, bodies_bytes=100_000), methods=("ml_mfcc",)) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as link:
            link.sendall(
                f"POST /process_audio HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 90000\r\n"
                "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
                'Content-Disposition: form-data; name="file"; filename="x"\r\n\r\n'.encode()
                + bytes(80_000)
            )
            until = time.monotonic() + 30
            while post(address, wav(5)).status_code != 503:  # 80 kB, when the others have come
                assert time.monotonic() < until
        until = time.monotonic() + 30
        while post(address, wav(5)).status_code != 200:
            assert time.monotonic() < until


@pytest.mark.parametrize("clients", [["a"], ["a", "a"], ["a", "b"]])
async def test_a_request_cancelled_at_its_turn_takes_no_item(clients):
    """Its future is cancelled at once, and it leaves the queue a step of the event loop later."""

    pool = FairPool(["only"], waiting=9)
    item = await pool.take("first")
    waiting = [asyncio.ensure_future(pool.take(client)) for client in clients]
    await asyncio.sleep(0)
    waiting[0].cancel()
    pool.give_back("first", item)
    for task in waiting[1:]:
        pool.give_back("a" if len(set(clients)) == 1 else "b", await task)
    assert await asyncio.wait_for(pool.take("last"), 30) == "only"
    assert pool.waiting == 0
