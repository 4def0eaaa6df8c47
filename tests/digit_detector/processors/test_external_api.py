"""A transcription service by HTTP: against a server of this machine, on 127.0.0.1."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from digit_detector.errors import ConfigError, ServiceError
from digit_detector.processors import ExternalAPIProcessor

AUDIO = b"RIFF\x00\x01\xff audio \r\n--not the border"
KEY = "secret-key"


class Service:
    """Answers each request with the next of `replies`: (code, body, headers), or a function of the handler."""

    def __init__(self) -> None:
        self.replies: list[Any] = []
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                service.requests.append((self.path, dict(self.headers), body))
                reply = service.replies.pop(0)
                if callable(reply):
                    reply(self)
                    return
                code, content, headers = reply
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/audio/transcriptions"

    def answers(self, text: str) -> None:
        self.replies.append((200, json.dumps({"text": text}).encode(), {}))

    def fails(self, code: int, **headers: str) -> None:
        self.replies.append((code, b"{}", {name.replace("_", "-"): value for name, value in headers.items()}))


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.fixture
def processor(service: Service) -> Callable[..., ExternalAPIProcessor]:
    def make(timeout: float = 5.0, **environment: str) -> ExternalAPIProcessor:
        return ExternalAPIProcessor(
            {"DIGIT_API_URL": service.url, "DIGIT_API_KEY": KEY, **environment}, timeout=timeout, first_wait=0.01
        )

    return make


def test_a_form_as_openai_takes_it(service: Service, processor: Callable[..., ExternalAPIProcessor]):
    service.answers(" Seven.")
    assert processor(DIGIT_API_MODEL="tiny").process_audio(AUDIO) == "7"
    ((path, headers, body),) = service.requests
    assert path == "/v1/audio/transcriptions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    border = re.fullmatch(r"multipart/form-data; boundary=(\w+)", headers["Content-Type"])[1].encode()
    model, file = body.split(b"--" + border)[1:3]
    assert model.endswith(b'name="model"\r\n\r\ntiny\r\n')
    assert b'filename="audio.wav"' in file
    assert file.endswith(b"\r\n\r\n" + AUDIO + b"\r\n")


def test_bytes_as_hugging_face_takes_them(service: Service, processor: Callable[..., ExternalAPIProcessor]):
    service.answers("for")
    assert processor(DIGIT_API_STYLE="huggingface").process_audio(AUDIO) == "4"
    ((_, headers, body),) = service.requests
    assert body == AUDIO
    assert headers["Content-Type"] == "audio/wav"


def test_no_key_no_header(service: Service, processor: Callable[..., ExternalAPIProcessor]):
    service.answers("one")
    processor(DIGIT_API_KEY="").process_audio(AUDIO)
    assert "Authorization" not in service.requests[0][1]


def test_a_text_without_a_digit_is_nothing(service: Service, processor: Callable[..., ExternalAPIProcessor]):
    service.answers("Thanks for nothing at all"[7:].replace("for", ""))
    assert processor().process_audio(AUDIO) == ""


@pytest.mark.parametrize("code", [429, 500, 503])
def test_what_may_pass_is_tried_again(code: int, service: Service, processor: Callable[..., ExternalAPIProcessor]):
    service.fails(code, Retry_After="0.01")
    service.answers("nine")
    assert processor().process_audio(AUDIO) == "9"
    assert len(service.requests) == 2


def test_three_attempts_and_no_more(service: Service, processor: Callable[..., ExternalAPIProcessor]):
    for _ in range(4):
        service.fails(503)
    with pytest.raises(ServiceError, match=r"3 attempts: it answered 503"):
        processor().process_audio(AUDIO)
    assert len(service.requests) == 3


@pytest.mark.parametrize(("code", "words"), [(401, "check DIGIT_API_KEY"), (404, "check DIGIT_API_URL"), (302, "302")])
def test_a_refusal_is_not_repeated(
    code: int, words: str, service: Service, processor: Callable[..., ExternalAPIProcessor]
):
    service.fails(code, Location=service.url)
    with pytest.raises(ServiceError, match=words) as told:
        processor().process_audio(AUDIO)
    assert len(service.requests) == 1
    assert KEY not in str(told.value)


def test_who_does_not_answer_is_given_up(service: Service, processor: Callable[..., ExternalAPIProcessor]):
    waiting = threading.Event()
    service.replies += [lambda handler: waiting.wait(5)] * 3
    try:
        with pytest.raises(ServiceError, match=r"no answer within 0\.1 s"):
            processor(timeout=0.1).process_audio(AUDIO)
    finally:
        waiting.set()


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b""], ids=["body", "head"])
def test_who_answers_byte_by_byte_is_given_up_too(
    head: bytes, service: Service, processor: Callable[..., ExternalAPIProcessor]
):
    def drip(handler: Any) -> None:
        with contextlib.suppress(OSError):
            handler.wfile.write(head)
            for byte in b"x" * 40:
                handler.wfile.write(bytes([byte]))
                time.sleep(0.05)

    service.replies += [drip] * 3
    started = time.monotonic()
    with pytest.raises(ServiceError, match=r"3 attempts: no answer within 0\.2 s"):
        processor(timeout=0.2).process_audio(AUDIO)
    assert time.monotonic() - started < 2.0


@pytest.mark.parametrize("line", [f"HTTP/1.1 {code} {KEY} is wrong" for code in (401, 404, 503)] + [KEY])
def test_a_service_that_repeats_the_key_is_not_repeated(
    line: str, service: Service, processor: Callable[..., ExternalAPIProcessor]
):
    service.replies += [lambda handler: handler.wfile.write(f"{line}\r\n\r\n".encode())] * 3
    with pytest.raises(ServiceError) as told:
        processor().process_audio(AUDIO)
    assert KEY not in str(told.value)


def test_a_line_that_is_cut_off_is_tried_again(service: Service, processor: Callable[..., ExternalAPIProcessor]):
    service.replies.append(lambda handler: handler.connection.close())
    service.answers("two")
    assert processor().process_audio(AUDIO) == "2"


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"[1]", b'{"text": 7}', b"\xff\xfe", b"[" * 200_000, b"x" * (2 << 20)]
)
def test_what_is_no_transcription_is_said(
    content: bytes, service: Service, processor: Callable[..., ExternalAPIProcessor]
):
    service.replies.append((200, content, {}))
    with pytest.raises(ServiceError, match="expected"):
        processor().process_audio(AUDIO)


def test_nobody_there(processor: Callable[..., ExternalAPIProcessor]):
    with pytest.raises(ServiceError, match=r"http://127\.0\.0\.1:9 did not answer"):
        processor(DIGIT_API_URL="http://127.0.0.1:9/hidden?key=hidden").process_audio(AUDIO)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "DIGIT_API_URL is not set"),
        ({"DIGIT_API_URL": "ftp://x/y"}, "begins with http"),
        ({"DIGIT_API_URL": "http://[::1"}, "begins with http"),
        ({"DIGIT_API_URL": "http://x:port/"}, "begins with http"),
        ({"DIGIT_API_URL": "http://x..y/"}, "begins with http"),
        ({"DIGIT_API_URL": "http://x/\u00e9"}, "begins with http"),
        ({"DIGIT_API_URL": "http://x/y", "DIGIT_API_MODEL": "\udcff"}, "DIGIT_API_MODEL: expected printable"),
        ({"DIGIT_API_URL": "http://x/y", "DIGIT_API_STYLE": "soap"}, "expected openai or huggingface, got 'soap'"),
        ({"DIGIT_API_URL": "http://x/y", "DIGIT_API_KEY": "a\nb"}, "printable ASCII"),
    ],
)
def test_an_environment_that_cannot_be_is_said(environment: dict[str, str], words: str):
    processor = ExternalAPIProcessor(environment)
    assert words in processor.unavailable
    with pytest.raises(ConfigError, match=words):
        processor.process_audio(AUDIO)
    assert words in processor.answer(AUDIO).error


@pytest.mark.parametrize("url", [f"http://me:{KEY}@x/y", f"x/y?token={KEY}", f"http://x/a b?token={KEY}"])
def test_an_address_that_is_refused_is_not_shown(url: str):
    told = ExternalAPIProcessor({"DIGIT_API_URL": url}).unavailable
    assert told is not None
    assert KEY not in told
