"""A cache of its own for every test, small recordings, a web server that misbehaves on demand, clips to vary."""

import http.server
import io
import socket
import tarfile
import threading
from collections.abc import Callable

import numpy as np
import pytest
import soundfile
import torch

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE
from ml_training.config import AugmentationConfig
from ml_training.data.augmentation import augment


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty home without recordings, and no way to the real network."""
    home = tmp_path / "home"
    home.mkdir()
    for variable in ("HOME", "USERPROFILE", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    proxies = [f"{kind}_proxy" for kind in ("http", "https", "all")]
    for variable in ("DIGIT_DATA_DIR", *proxies, *(name.upper() for name in proxies)):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("DIGIT_DATA_URL", unused_address())
    return home


def unused_address():
    """An address on this machine without a server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/fsdd.tar.gz"


@pytest.fixture
def no_server():
    return unused_address()


# --- recordings ----------------------------------------------------------------------------------


def tone_wav(frequency=400.0, seconds=0.4, rate=8000):
    time = np.arange(int(seconds * rate)) / rate
    stream = io.BytesIO()
    soundfile.write(stream, 0.3 * np.sin(2 * np.pi * frequency * time), rate, format="WAV", subtype="PCM_16")
    return stream.getvalue()


@pytest.fixture
def wav():
    """Makes the bytes of a WAV file with a tone: wav(frequency, seconds, rate)."""
    return tone_wav


@pytest.fixture
def recordings():
    """Sixty files named as FSDD names them, two speakers."""
    return {
        f"{digit}_{speaker}_{index}.wav": tone_wav(200 + 50 * digit + index + 7 * len(speaker), 0.05)
        for digit in range(10)
        for speaker in ("anna", "theo")
        for index in (0, 5, 6)
    }


def tar_of(files, folder="fsdd-1.0.10/recordings/"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(folder + name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture
def tar():
    """Packs files as GitHub packs a tag: tar(files, folder)."""
    return tar_of


# --- server --------------------------------------------------------------------------------------


class Server:
    """Answers each path with what `answers` holds: the bytes, a status code, or a function of the handler."""

    def __init__(self):
        self.answers: dict[str, bytes | int | Callable[[http.server.BaseHTTPRequestHandler], None]] = {}
        self.requests: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self):
                outer.requests.append(self.path)
                answer = outer.answers.get(self.path, 404)
                if isinstance(answer, int):
                    self.send_error(answer)
                elif isinstance(answer, bytes):
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)
                else:
                    answer(self)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def url(self, path):
        return f"http://127.0.0.1:{self._server.server_address[1]}{path}"

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


# --- augmentation --------------------------------------------------------------------------------

OFF = AugmentationConfig(
    speed=(1.0, 1.0), gain_db=(0.0, 0.0), random_eq_db=0.0, noise_probability=0.0, procedural_ratio=0.0,
    time_shift=0.0,
)  # fmt: skip


def only(**settings):
    return AugmentationConfig(**{**vars(OFF), **settings})


@pytest.fixture
def changed():
    """Makes settings with everything off but what is named: changed(**settings)."""
    return only


def vary(clips, lengths, seed=0, **settings):
    torch.manual_seed(seed)
    return augment(clips, lengths, only(**settings))


@pytest.fixture
def varied():
    """Augments with everything off but what is named: varied(clips, lengths, seed, **settings)."""
    return vary


@pytest.fixture
def lengths():
    """Samples that the clips last."""
    return torch.tensor([1200, 4000, 6002, 8000])


@pytest.fixture
def clips(lengths):
    """Tones of 500 Hz in the middle of their second."""
    time = torch.arange(NUM_SAMPLES) / SAMPLE_RATE
    tone = torch.sin(2 * torch.pi * 500 * time)
    begin = (NUM_SAMPLES - lengths) // 2
    index = torch.arange(NUM_SAMPLES)
    inside = (index >= begin[:, None]) & (index < (begin + lengths)[:, None])
    return tone * inside


def vowel_of(pitch, formant, length=4800):
    """(T,) harmonics of `pitch` Hz under one formant, `length` samples in the middle of the second."""
    time = torch.arange(length) / SAMPLE_RATE
    harmonics = torch.arange(pitch, SAMPLE_RATE / 2, pitch)
    gains = 1 / (1 + ((harmonics - formant) / 150) ** 2)
    sound = torch.sin(2 * torch.pi * harmonics[:, None] * time + harmonics[:, None]).mul(gains[:, None]).sum(dim=0)
    sound = 0.05 * sound * torch.hann_window(length)
    start = (NUM_SAMPLES - length) // 2
    return torch.nn.functional.pad(sound, (start, NUM_SAMPLES - length - start))


@pytest.fixture
def vowel():
    """Makes a clip (T,) of a voice: vowel(pitch, formant, length)."""
    return vowel_of


@pytest.fixture
def noise_dir(tmp_path):
    """Two recordings, a tone of 3 s with silent ends and a hum of 0.3 s, one in a folder below."""
    folder = tmp_path / "noises"
    (folder / "inner").mkdir(parents=True)
    time = np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE
    tone = 0.02 * np.sin(2 * np.pi * 1000 * time) * (0.5 + time / 6)
    soundfile.write(folder / "tone.wav", np.pad(tone, (SAMPLE_RATE, 2 * SAMPLE_RATE)), SAMPLE_RATE)
    soundfile.write(folder / "inner" / "hum.flac", 0.5 * np.sin(2 * np.pi * 200 * time[:2400]), SAMPLE_RATE)
    (folder / "about.txt").write_text("not audio")
    (folder / "._tone.wav").write_bytes(b"hidden")
    return folder
