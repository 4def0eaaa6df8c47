"""The transcription service over HTTP, against a real server on 127.0.0.1."""

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
    """Answers each request with the next of `replies`: (status, body, headers), or a function of the handler."""

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

    def answer(self, text: str) -> None:
        self.replies.append((200, json.dumps({"text": text}).encode(), {}))

    def fail(self, code: int, **headers: str) -> None:
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
        variables = {"DIGIT_API_URL": service.url, "DIGIT_API_KEY": KEY, **environment}
        return ExternalAPIProcessor(variables, timeout=timeout, first_wait=0.01)

    return make


def test_openai_takes_a_form_with_file_and_model(service, processor):
    service.answer(" Seven.")
    assert processor(DIGIT_API_MODEL="tiny").process_audio(AUDIO) == "7"
    ((path, headers, body),) = service.requests
    assert path == "/v1/audio/transcriptions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    border = re.fullmatch(r"multipart/form-data; boundary=(\w+)", headers["Content-Type"])[1].encode()
    model, file = body.split(b"--" + border)[1:3]
    assert model.endswith(b'name="model"\r\n\r\ntiny\r\n')
    assert b'filename="audio.wav"' in file
    assert file.endswith(b"\r\n\r\n" + AUDIO + b"\r\n")


def test_hugging_face_takes_the_bytes(service, processor):
    service.answer("for")
    assert processor(DIGIT_API_STYLE="huggingface", DIGIT_API_KEY="").process_audio(AUDIO) == "4"
    ((_, headers, body),) = service.requests
    assert body == AUDIO
    assert headers["Content-Type"] == "audio/wav"
    assert "Authorization" not in headers
    service.answer("nothing at all")
    assert processor().process_audio(AUDIO) == ""


@pytest.mark.parametrize("code", [429, 500, 503, None])
def test_transient_failures_are_retried(code, service, processor):
    if code is None:
        service.replies.append(lambda handler: handler.connection.close())
    else:
        service.fail(code, Retry_After="0.01")
    service.answer("nine")
    assert processor().process_audio(AUDIO) == "9"
    assert len(service.requests) == 2


@pytest.mark.parametrize(("code", "words"), [(401, "DIGIT_API_KEY"), (404, "DIGIT_API_URL"), (302, "302")])
def test_refusals_and_redirects_are_not_retried(code, words, service, processor):
    service.fail(code, Location=service.url)
    with pytest.raises(ServiceError, match=words) as raised:
        processor().process_audio(AUDIO)
    assert len(service.requests) == 1
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"", None], ids=["body", "head", "silent"])
def test_the_deadline_is_total(head, service, processor):
    """Also for a service that sends a byte now and then."""
    over = threading.Event()

    def drip(handler: Any) -> None:
        with contextlib.suppress(OSError):
            handler.wfile.write(head or b"")
            while not over.is_set():
                if head is not None:
                    handler.wfile.write(b"x")
                time.sleep(0.05)

    service.replies += [drip] * 3
    try:
        with pytest.raises(ServiceError, match=r"3 attempts: no answer within 0\.2 s"):
            processor(timeout=0.2).process_audio(AUDIO)
    finally:
        over.set()


@pytest.mark.parametrize("line", [f"HTTP/1.1 {code} {KEY} is wrong" for code in (401, 404, 503)] + [KEY])
def test_a_key_that_the_service_repeats_is_not_shown(line, service, processor):
    service.replies += [lambda handler: handler.wfile.write(f"{line}\r\n\r\n".encode())] * 3
    with pytest.raises(ServiceError) as raised:
        processor().process_audio(AUDIO)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"[1]", b'{"text": 7}', b"\xff\xfe", b"[" * 200_000, b"x" * (2 << 20)]
)
def test_an_answer_without_transcription_is_an_error(content, service, processor):
    service.replies.append((200, content, {}))
    with pytest.raises(ServiceError, match="expected"):
        processor().process_audio(AUDIO)


def test_an_unreachable_service_is_named_without_its_secrets(processor):
    with pytest.raises(ServiceError, match=r"http://127\.0\.0\.1:9 did not answer") as raised:
        processor(DIGIT_API_URL="http://127.0.0.1:9/hidden?key=hidden").process_audio(AUDIO)
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "DIGIT_API_URL is not set"),
        *(
            ({"DIGIT_API_URL": url}, "begins with http")
            for url in ("ftp://x/y", "http://[::1", "http://x:port/", "http://x..y/", "http://x/\u00e9",
                        f"http://me:{KEY}@x/y", f"x/y?token={KEY}", f"http://x/a b?token={KEY}")
        ),
        ({"DIGIT_API_URL": "http://x/y", "DIGIT_API_MODEL": "\udcff"}, "DIGIT_API_MODEL: expected printable"),
        ({"DIGIT_API_URL": "http://x/y", "DIGIT_API_STYLE": "soap"}, "expected openai or huggingface, got 'soap'"),
        ({"DIGIT_API_URL": "http://x/y", "DIGIT_API_KEY": "a\nb"}, "printable ASCII"),
    ],
)  # fmt: skip
def test_invalid_variables_are_reported_without_secrets(environment, words):
    processor = ExternalAPIProcessor(environment)
    assert words in processor.unavailable
    assert KEY not in processor.unavailable
    with pytest.raises(ConfigError, match=words):
        processor.process_audio(AUDIO)
    assert words in processor.answer(AUDIO).error
