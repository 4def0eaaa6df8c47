"""A transcription service by HTTP, of OpenAI's form or Hugging Face's.

What it needs stands in the environment: DIGIT_API_URL and, where the service asks for one, DIGIT_API_KEY;
DIGIT_API_STYLE is "openai" (a form with the file and a model's name) or "huggingface" (the bytes of the file alone),
DIGIT_API_MODEL the name of the model. Recordings leave the machine: nothing is sent unless an address is given.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from digit_detector.errors import ConfigError, ServiceError
from digit_detector.processors.base import AudioProcessor
from digit_detector.processors.baselines import NOTHING, said

URL, KEY, STYLE, MODEL = "DIGIT_API_URL", "DIGIT_API_KEY", "DIGIT_API_STYLE", "DIGIT_API_MODEL"
STYLES = ("openai", "huggingface")
_LARGEST = 1 << 20  # bytes of an answer
_AGAIN = (408, 425, 429, 500, 502, 503, 504)  # what may pass by itself
_LONGEST_WAIT = 10.0  # seconds, whatever the service asks for
_KINDS = {
    b"RIFF": "audio/wav",
    b"fLaC": "audio/flac",
    b"OggS": "audio/ogg",
    b"\x1aE\xdf\xa3": "audio/webm",
    b"ID3": "audio/mpeg",
}


class ExternalAPIProcessor(AudioProcessor):
    """Sends each recording to the service and takes the first digit of what it transcribes."""

    def __init__(
        self,
        environment: Mapping[str, str] = os.environ,
        timeout: float = 10.0,
        attempts: int = 3,
        first_wait: float = 0.5,
    ) -> None:
        """`timeout` seconds for an attempt; between two of them `first_wait`, then twice as long, or what is asked for.

        What is missing in the environment, or cannot be, is said by `unavailable` and to whoever uses it all the same.
        """
        self._url = environment.get(URL, "").strip()
        self._style = environment.get(STYLE, STYLES[0])
        self._model = environment.get(MODEL, "whisper-1")
        self._timeout, self._attempts, self._first_wait = timeout, attempts, first_wait
        faults = []
        if not self._url:
            faults.append(f"{URL} is not set: expected the address of a transcription service")
        elif not _is_address(self._url):  # which may hold a secret: it is not shown
            faults.append(
                f"{URL}: expected an address that begins with http:// or https://, in ASCII, without spaces, a user or "
                f"a password (a key goes into {KEY})"
            )
        if self._style not in STYLES:
            faults.append(f"{STYLE}: expected {' or '.join(STYLES)}, got {self._style!r}")
        if not self._model.isprintable():
            faults.append(f"{MODEL}: expected printable text without line breaks, got {self._model!r}")
        key = environment.get(KEY, "")
        if not key.isascii() or not key.isprintable():
            faults.append(f"{KEY}: expected printable ASCII without line breaks")
        self._fault = ConfigError(faults, "the environment") if faults else None
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    @property
    def unavailable(self) -> str | None:
        return None if self._fault is None else str(self._fault)

    def process_audio(self, audio_data: bytes) -> str:
        """Raises ServiceError where the service does not answer, refuses, or answers what cannot be read.

        Raises ConfigError where the environment does not say which service.
        """
        if self._fault is not None:
            raise self._fault
        digit = said(self._transcribe(audio_data))
        return "" if digit == NOTHING else str(digit)

    def _transcribe(self, audio_data: bytes) -> str:
        wait, why = self._first_wait, ""
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(min(wait, _LONGEST_WAIT))
                wait *= 2
            try:
                return self._text(self._send(audio_data))
            except urllib.error.HTTPError as error:
                with error:
                    # Not the words that it chose itself, which may repeat the key.
                    why = f"it answered {error.code} {http.client.responses.get(error.code, '')}".rstrip()
                    if error.code in (401, 403):
                        raise ServiceError(f"{self._where} refused: {why}; check {KEY}") from None
                    if error.code not in _AGAIN:
                        raise ServiceError(f"{self._where}: {why}; check {URL}, {STYLE} and {MODEL}") from None
                    wait = max(wait, _seconds(error.headers.get("Retry-After")))
            except TimeoutError:
                why = f"no answer within {self._timeout:g} s"
            except http.client.HTTPException as error:
                why = f"its answer broke off or is no HTTP ({type(error).__name__})"
            except (urllib.error.URLError, OSError) as error:
                why = str(getattr(error, "reason", error)) or type(error).__name__
                if "timed out" in why:
                    why = f"no answer within {self._timeout:g} s"
        raise ServiceError(f"{self._where} did not answer in {self._attempts} attempts: {why}; try again later")

    def _send(self, audio_data: bytes) -> bytes:
        kind = next(
            (kind for magic, kind in _KINDS.items() if audio_data.startswith(magic)), "application/octet-stream"
        )
        if self._style == "huggingface":
            body, headers = audio_data, {"Content-Type": kind}
        else:
            body, headers = self._form(audio_data, kind)
        request = urllib.request.Request(self._url, data=body, headers={**self._headers, **headers}, method="POST")
        line = _Line(self._timeout)
        opener = urllib.request.build_opener(_NoRedirects, line)
        with line, opener.open(request, timeout=self._timeout) as response:
            content: bytes = response.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise ServiceError(f"{self._where} answered more than {_LARGEST >> 20} MB: expected a transcription")
        return content

    def _form(self, audio_data: bytes, kind: str) -> tuple[bytes, dict[str, str]]:
        """multipart/form-data (RFC 7578) with the model's name and the file."""
        border = secrets.token_hex(16)
        suffix = kind.partition("/")[2].partition("-")[0]
        head = (
            f'--{border}\r\nContent-Disposition: form-data; name="model"\r\n\r\n{self._model}\r\n'
            f'--{border}\r\nContent-Disposition: form-data; name="file"; filename="audio.{suffix}"\r\n'
            f"Content-Type: {kind}\r\n\r\n"
        )
        body = head.encode() + audio_data + f"\r\n--{border}--\r\n".encode()
        return body, {"Content-Type": f"multipart/form-data; boundary={border}"}

    def _text(self, content: bytes) -> str:
        try:
            told = json.loads(content)
        except (ValueError, RecursionError):
            told = None
        text = told.get("text") if isinstance(told, dict) else None
        if not isinstance(text, str):
            raise ServiceError(f'{self._where} answered no transcription: expected JSON with a "text"; check {STYLE}')
        return text

    @property
    def _where(self) -> str:
        """The service without what an address may hide in its path or query."""
        parts = urllib.parse.urlsplit(self._url)
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A key is for the address that was given, and for no other."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


class _Line(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """Hangs up after so many seconds, which is a TimeoutError: a socket's own timeout begins anew with every byte."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._timer = threading.Timer(seconds, self._hang_up)
        self._timer.daemon = True
        self._sockets: list[socket.socket] = []
        self._late = False

    def do_open(self, http_class: Any, req: urllib.request.Request, **options: Any) -> Any:
        line = self

        class Connection(http_class):  # type: ignore[misc]
            def connect(self) -> None:
                super().connect()
                line._sockets.append(self.sock)
                if line._late:
                    line._hang_up()

        return super().do_open(Connection, req, **options)

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._late:
            raise TimeoutError

    def _hang_up(self) -> None:
        self._late = True
        for line in self._sockets:
            with suppress(OSError):  # it is closed already
                socket.socket.shutdown(line, socket.SHUT_RDWR)  # what TLS adds to it would wait for the other side


def _is_address(url: str) -> bool:
    if not url.isascii() or not url.isprintable() or " " in url:
        return False
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = (parts.hostname or "").encode("idna"), parts.port
    except ValueError:  # brackets, a name or a port that cannot be
        return False
    return parts.scheme in ("http", "https") and bool(host) and "@" not in parts.netloc


def _seconds(asked: str | None) -> float:
    try:
        return max(0.0, float(asked or 0.0))
    except ValueError:  # a date
        return 0.0
