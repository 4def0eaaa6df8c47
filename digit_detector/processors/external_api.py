"""A transcription service over HTTP, with an interface like OpenAI's or Hugging Face's.

Environment variables: DIGIT_API_URL; DIGIT_API_KEY, if the service needs one; DIGIT_API_STYLE, "openai" (a form with
the file and the name of a model) or "huggingface" (the bytes of the file alone); DIGIT_API_MODEL, the model's name.
Recordings leave the machine: nothing is sent unless an address is set.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from digit_detector.errors import ConfigError, DigitError, MissingExtraError, ServiceError
from digit_detector.processors.base import AudioProcessor
from digit_detector.processors.baselines import NOTHING, parse_digit

if TYPE_CHECKING:
    import httpx

URL, KEY, STYLE, MODEL = "DIGIT_API_URL", "DIGIT_API_KEY", "DIGIT_API_STYLE", "DIGIT_API_MODEL"
STYLES = ("openai", "huggingface")
_HOST = re.compile(r"https?://([\w-]+(\.[\w-]+)*\.?|\[[\da-f:.]+\])(:\d{1,5})?", re.ASCII | re.IGNORECASE)
_MAX_BYTES = 1 << 20  # of a response
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)  # statuses after which an attempt may succeed
_MAX_WAIT = 10.0  # seconds between two attempts, whatever the service asks for
_TYPES = {
    b"RIFF": "audio/wav", b"fLaC": "audio/flac", b"OggS": "audio/ogg", b"\x1aE\xdf\xa3": "audio/webm",
    b"ID3": "audio/mpeg",
}  # fmt: skip


class ExternalAPIProcessor(AudioProcessor):
    """Sends each recording to the service and returns the first digit of the transcription."""

    def __init__(
        self, environment: Mapping[str, str] = os.environ, timeout: float = 10.0, attempts: int = 3,
        first_wait: float = 0.5,
    ) -> None:  # fmt: skip
        """`timeout`: seconds of one attempt in all. Waits `first_wait` s, then twice as long, or as the service asks.

        Invalid variables are reported by `unavailable` and raised by `process_audio`.
        """
        self._url, key = environment.get(URL, "").strip(), environment.get(KEY, "")
        self._style, self._model = environment.get(STYLE, STYLES[0]), environment.get(MODEL, "whisper-1")
        self._timeout, self._attempts, self._first_wait = timeout, attempts, first_wait
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        host, faults = _HOST.match(self._url), []
        self._service = host[0] if host else ""  # in messages: path and query may hold a secret
        if not self._url:
            faults.append(f"{URL} is not set: expected the address of a transcription service")
        elif host is None or not re.fullmatch(r"([/?#][!-~]*)?", self._url[host.end() :]):
            faults.append(
                f"{URL}: expected an address that begins with http:// or https://, in ASCII, without spaces, a user or "
                f"a password (a key goes into {KEY})"
            )
        if self._style not in STYLES:
            faults.append(f"{STYLE}: expected {' or '.join(STYLES)}, got {self._style!r}")
        if not self._model.isprintable():
            faults.append(f"{MODEL}: expected printable text without line breaks, got {self._model!r}")
        if not key.isascii() or not key.isprintable():
            faults.append(f"{KEY}: expected printable ASCII without line breaks")
        self._fault: DigitError | None = ConfigError(faults, "the environment") if faults else None
        if not faults and find_spec("httpx") is None:
            self._fault = MissingExtraError("a transcription service (httpx)", "external")

    @property
    def unavailable(self) -> str | None:
        return None if self._fault is None else str(self._fault)

    def process_audio(self, audio_data: bytes) -> str:
        """Raises ServiceError if the service fails, ConfigError or MissingExtraError if it cannot be called."""
        if self._fault is not None:
            raise self._fault
        digit = parse_digit(self._transcribe(audio_data))
        return "" if digit == NOTHING else str(digit)

    def _transcribe(self, audio_data: bytes) -> str:
        import httpx

        wait, why = self._first_wait, ""
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(min(wait, _MAX_WAIT))
                wait *= 2
            try:
                with ThreadPoolExecutor(1) as thread:  # this one may run an event loop already
                    status, retry_after, content = thread.submit(asyncio.run, self._post(audio_data)).result()
            except (TimeoutError, httpx.TimeoutException):
                why = f"no answer within {self._timeout:g} s"
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:  # its text may hold the key
                why = f"its answer ended early or is not HTTP ({type(error).__name__})"
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                why = str(error) or type(error).__name__
            else:
                if 200 <= status < 300:
                    return self._read_text(content)
                # Only the number: the service's own words may repeat the key.
                why = f"it answered {status} {HTTPStatus(status).phrase if status in set(HTTPStatus) else ''}".rstrip()
                if status not in _TRANSIENT:
                    check = KEY if status in (401, 403) else f"{URL}, {STYLE} and {MODEL}"
                    raise ServiceError(f"{self._service} refused: {why}; check {check}")
                wait = max(wait, float(retry_after) if retry_after.replace(".", "", 1).isdecimal() else 0.0)
        raise ServiceError(f"{self._service} did not answer in {self._attempts} attempts: {why}; try again later")

    async def _post(self, audio_data: bytes) -> tuple[int, str, bytes]:
        """Send a recording -> status, Retry-After header and body of the response."""
        import httpx

        kind = next((kind for magic, kind in _TYPES.items() if audio_data.startswith(magic)), "")
        kind, headers = kind or "application/octet-stream", {**self._headers, "Accept-Encoding": "identity"}
        body: dict[str, Any] = {"content": audio_data}
        if self._style == "huggingface":
            headers["Content-Type"] = kind
        else:
            name = f"audio.{kind.partition('/')[2].partition('-')[0]}"
            body = {"data": {"model": self._model}, "files": {"file": (name, audio_data, kind)}}
        async with (
            asyncio.timeout(self._timeout),  # of everything: httpx's own timeout restarts with every byte
            httpx.AsyncClient(timeout=self._timeout) as client,  # follows no redirect, which could take the key along
            client.stream("POST", self._url, headers=headers, **body) as response,
        ):
            return response.status_code, response.headers.get("Retry-After", ""), await self._read_body(response)

    async def _read_body(self, response: httpx.Response) -> bytes:
        content = b""
        async for part in response.aiter_raw():
            content += part
            if len(content) > _MAX_BYTES:
                raise ServiceError(
                    f"{self._service} answered more than {_MAX_BYTES >> 20} MB: expected a transcription"
                )
        return content

    def _read_text(self, content: bytes) -> str:
        try:
            message = json.loads(content)
        except (ValueError, RecursionError):
            message = None
        text = message.get("text") if isinstance(message, dict) else None
        if not isinstance(text, str):
            raise ServiceError(f'{self._service} answered no transcription: expected JSON with a "text"; check {STYLE}')
        return text
