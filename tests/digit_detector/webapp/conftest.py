"""Fixtures: servers in a thread on a free port of 127.0.0.1, browsers, and pages that must not log errors."""

import contextlib
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

import digit_detector
from digit_detector.serve import bind
from digit_detector.webapp.app import make_app
from digit_detector.webapp.limits import ServerLimits
from digit_detector.webapp.server import make_server, page_address
from ml_training.data.tts import VOICES, synthesize_words


@contextlib.contextmanager
def _serving(settings: ServerLimits | None = None, **options: object) -> Iterator[str]:
    """The address of a running server."""
    settings = settings or ServerLimits(port=0)
    with bind(settings, exact=True) as listening:
        server = make_server(make_app(settings, **options), settings)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        until = time.monotonic() + 120
        while not server.started:
            assert thread.is_alive(), "the server ended"
            assert time.monotonic() < until, "the server did not start"
            time.sleep(0.02)
        try:
            yield page_address(listening)
        finally:
            server.should_exit = True
            thread.join(timeout=15)
            assert not thread.is_alive(), "the server did not end"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def serving() -> Callable[..., contextlib.AbstractContextManager[str]]:
    """`with serving(ServerLimits(port=0, ...)) as address` for a server with other limits."""
    return _serving


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of a server with the shipped models and the usual limits."""
    with _serving() as address:
        yield address


@pytest.fixture(scope="module")
def launch() -> Iterator[Callable[..., Any]]:
    """`launch("--flag")` -> playwright's Browser; skips without chromium.

    Per module, since playwright occupies asyncio.
    """
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright, contextlib.ExitStack() as browsers:
        installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        program = installed or playwright.chromium.executable_path
        if not Path(program).is_file():
            pytest.skip("chromium is not installed")

        def launched(*flags: str) -> Any:
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", *flags])
            browsers.callback(browser.close)
            return browser

        yield launched


@pytest.fixture(scope="module")
def chromium(launch: Callable[..., Any]) -> Any:
    """A browser without a microphone."""
    return launch()


@pytest.fixture
def opened(server: str) -> Iterator[Callable[..., Any]]:
    """`opened(browser, **options)` -> a loaded page; errors of the page fail the test."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def open_page(browser: Any, address: str = server, expected: str = "^$", **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()

        def complain(text: str) -> None:
            if not re.search(expected, text):
                complaints.append(text)

        page.on("console", lambda message: complain(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complain(str(error)))
        page.on("request", lambda got: None if got.url.startswith((address, "blob:", "data:")) else complain(got.url))
        page.goto(address)
        page.locator("#answers tbody tr").first.wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture(scope="session")
def bundled() -> dict[int, np.ndarray]:
    """The recordings of a seven and a three that ship, at 8 kHz, by their digit."""
    folder = Path(digit_detector.__file__).with_name("samples")
    files = {digit: soundfile.read(folder / f"{name}.flac") for digit, name in ((7, "seven"), (3, "three"))}
    return {digit: soxr.resample(samples, rate, 8000) for digit, (samples, rate) in files.items()}


@pytest.fixture(scope="module")
def spoken() -> list[tuple[int, np.ndarray]]:
    """Synthetic digits, at 8 kHz, each with its digit."""
    words = {7: "seven", 3: "three", 9: "nine", 4: "four", 0: "zero", 8: "eight"}
    return list(zip(words, synthesize_words([(VOICES[1], word) for word in words.values()], seed=3), strict=True))


@pytest.fixture(scope="module")
def recording(spoken: list[tuple[int, np.ndarray]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of "seven"."""
    path = tmp_path_factory.mktemp("recordings") / "seven.wav"
    soundfile.write(path, soxr.resample(0.5 * spoken[0][1], 8000, 16_000), 16_000)
    return path
