"""Decoder process: a file that crashes or exhausts a decoder only ends this process.

Standard input carries uploads: a line of JSON with its size in bytes, encoding and rate, then the bytes. Standard
output carries a reply for each: a line of JSON, then float32 samples, one channel at 8 kHz, if it could be decoded.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import queue
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from digit_detector.audio import SAMPLE_RATE, Floats, decode
from digit_detector.errors import AudioError, DigitError
from digit_detector.webapp.child_process import READY
from digit_detector.webapp.errors import as_rejection


@dataclass(frozen=True)
class DecodeLimits:
    """Limits of decoding one upload."""

    most_seconds: float  # of audio
    cpu_seconds: float
    wall_seconds: float
    memory_bytes: int  # beyond an idle process


def decode_upload(content: bytes, most_seconds: float, encoding: str | None = None, rate: int | None = None) -> Floats:
    """Decode a recording of any format to one channel (T,) at 8 kHz. Raises AudioError, ConfigError."""
    return decode(content, rate, encoding, max_seconds=most_seconds)


def main() -> int:
    """Decode until standard input ends; the command line is the DecodeLimits as a JSON object."""
    for sent in (signal.SIGINT, signal.SIGTERM):  # sent to the whole process group: the server closes stdin instead
        signal.signal(sent, signal.SIG_IGN)
    limits = DecodeLimits(**json.loads(sys.argv[1]))
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    uploads: queue.SimpleQueue[tuple[dict[str, Any], bytes]] = queue.SimpleQueue()
    _load_decoders()
    threading.Thread(target=_read, args=(sys.stdin.buffer, uploads), daemon=True).start()
    with open(os.devnull, "wb") as null:  # libraries must not print into replies or the server's log
        for stream in (sys.stdout, sys.stderr):
            os.dup2(null.fileno(), stream.fileno())
    idle = _data_bytes()
    _restrict(idle + limits.memory_bytes)
    out.write(READY)
    out.flush()
    ends = False
    while not ends:
        header, content = uploads.get()
        _allow_cpu(limits.cpu_seconds)
        reply, payload = _reply(header, content, limits)
        _allow_cpu(0)
        del content
        # Ends also if a library has leaked memory.
        ends = reply["ends"] = reply.get("ends", False) or _data_bytes() - idle > limits.memory_bytes // 4
        out.write(json.dumps({**reply, "size": len(payload)}).encode() + b"\n" + payload)
        out.flush()
        del payload
    return 0


def _read(messages: BinaryIO, uploads: queue.SimpleQueue[tuple[dict[str, Any], bytes]]) -> None:
    """Queue uploads; end the process when standard input ends, even during decoding."""
    while line := messages.readline():
        header = json.loads(line)
        uploads.put((header, messages.read(header["size"])))
    os._exit(0)


def _reply(header: dict[str, Any], content: bytes, limits: DecodeLimits) -> tuple[dict[str, Any], bytes]:
    """Return the line and the payload of a reply; "ends" means that the process must not be used again."""
    try:
        samples = decode_upload(content, limits.most_seconds, header["encoding"], header["rate"])
        return {}, samples.astype("<f4").tobytes()
    except MemoryError:
        error, ends, log = _out_of_memory(limits), True, ""
    except DigitError as raised:
        error, ends, log = raised, False, ""
    except Exception as raised:  # a bug: the server logs it, and the client gets `failed`
        error, ends, log = DigitError(), True, "".join(traceback.format_exception(raised))
    refused = as_rejection(error)
    return {"status": refused.status, "code": refused.code, "message": str(refused), "ends": ends, "log": log}, b""


def _out_of_memory(limits: DecodeLimits) -> DigitError:
    megabytes = limits.memory_bytes / 2**20
    return AudioError(
        f"the recording takes more than {megabytes:g} MB of memory to decode: send it as a plain WAV of one channel"
    )


def _load_decoders() -> None:
    """Load every library and its files, since later nothing can be opened."""
    import soundfile
    import soxr

    wav = io.BytesIO()
    soundfile.write(wav, np.zeros(1600, dtype=np.float32), 16_000, format="WAV")
    soxr.ResampleStream(16_000, SAMPLE_RATE, 1, dtype="float32", quality="HQ").resample_chunk(np.zeros(16, np.float32))
    decode_upload(wav.getvalue(), 1.0)
    with contextlib.suppress(ImportError):
        import av

        wav.seek(0)
        with av.open(wav, mode="r", format="wav", metadata_errors="ignore") as media:
            for frame in media.decode(audio=0):
                frame.to_ndarray()
    with contextlib.suppress(DigitError):  # load the error path too
        decode_upload(b"\x1a\x45\xdf\xa3" + bytes(100), 1.0)


def _restrict(data_bytes: int) -> None:
    """Forbid new files and sockets, writes to files, and more memory than this, if the system supports such limits."""
    try:
        import resource
    except ImportError:  # Windows: only the server's timeout applies
        return
    free = os.dup(0)
    os.close(free)
    most = {resource.RLIMIT_NOFILE: free, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    if sys.platform == "linux":  # other systems do not count memory that malloc maps
        most[resource.RLIMIT_DATA] = data_bytes
    for kind, limit in most.items():
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, limit))


def _allow_cpu(seconds: float) -> None:
    """Let the system end the process (SIGPROF) after this much CPU time from now; 0 for no limit."""
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _data_bytes() -> int:
    """Writable private memory of this process in bytes; 0 if the system does not report it."""
    statm = _open_statm()
    return 0 if statm is None else int(os.pread(statm, 200, 0).split()[5]) * os.sysconf("SC_PAGE_SIZE")


@functools.cache
def _open_statm() -> int | None:
    try:
        return os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:
        return None


if __name__ == "__main__":
    sys.exit(main())
