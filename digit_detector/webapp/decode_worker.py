"""A process that decodes uploads: what a file does to a decoder is done to a process that can be ended.

Standard input carries uploads, each a REQUEST and its bytes; standard output one REPLY for each and its payload:
float32 samples, one channel at 8 kHz, or as JSON why there are none. The first byte, READY, says that it can begin.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import queue
import signal
import struct
import sys
import threading
import traceback
from dataclasses import dataclass
from http import HTTPStatus
from typing import BinaryIO

import numpy as np

from digit_detector.audio import SAMPLE_RATE, Floats, decode
from digit_detector.errors import DigitError
from digit_detector.webapp.errors import RejectedError, as_rejection

REQUEST = struct.Struct("<I")  # bytes of the upload
REPLY = struct.Struct("<BBdI")  # DECODED or REFUSED, whether the process ends now, seconds, bytes of the payload
DECODED, REFUSED = range(2)
READY = b"+"


@dataclass(frozen=True)
class DecodeLimits:
    """What one upload may cost."""

    most_seconds: float  # of sound
    cpu_seconds: float
    wall_seconds: float
    memory_bytes: int  # beyond what an idle process takes


def decode_upload(content: bytes, most_seconds: float) -> tuple[Floats, float]:
    """A recording of any format -> one channel (T,) at 8 kHz, and its length in seconds.

    Raises an AudioError for what is no recording, or one that is too long.
    """
    samples = decode(content, max_seconds=most_seconds)
    return samples, len(samples) / SAMPLE_RATE


def main() -> int:
    """Decode until standard input ends; the command line is the DecodeLimits as a JSON object."""
    for sent in (signal.SIGINT, signal.SIGTERM):  # to all of a terminal or a service: the server ends, and then this
        signal.signal(sent, signal.SIG_IGN)
    limits = DecodeLimits(**json.loads(sys.argv[1]))
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    uploads: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    _load_decoders()
    threading.Thread(target=_read, args=(sys.stdin.buffer, uploads), daemon=True).start()
    with open(os.devnull, "wb") as nowhere:  # what the libraries print is no part of a reply, nor of the server's log
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere.fileno(), stream.fileno())
    idle = _data_bytes()
    _restrict(idle + limits.memory_bytes)
    out.write(READY)
    out.flush()
    ends = False
    while not ends:
        content = uploads.get()
        _allow_cpu(limits.cpu_seconds)
        kind, seconds, payload, ends = _reply(content, limits)
        _allow_cpu(0)
        del content
        ends = ends or _data_bytes() - idle > limits.memory_bytes // 4  # what a library leaks is no later upload's loss
        out.write(REPLY.pack(kind, ends, seconds, len(payload)))
        out.write(payload)
        out.flush()
        del payload
    return 0


def _read(messages: BinaryIO, uploads: queue.SimpleQueue[bytes]) -> None:
    """Hand uploads on; the process ends with its input, also in the middle of a decoder."""
    while len(head := messages.read(REQUEST.size)) == REQUEST.size:
        uploads.put(messages.read(REQUEST.unpack(head)[0]))
    os._exit(0)


def _reply(content: bytes, limits: DecodeLimits) -> tuple[int, float, bytes, bool]:
    """The kind, the seconds and the payload of a reply, and whether the process had better end."""
    log, ends = "", False
    try:
        samples, seconds = decode_upload(content, limits.most_seconds)
        return DECODED, seconds, samples.astype("<f4").tobytes(), False
    except DigitError as error:
        refused = as_rejection(error)
    except MemoryError:
        refused, ends = _out_of_memory(limits), True
    except Exception as error:  # a bug of ours or of a library: the server tells its log, and the client that it failed
        refused, log, ends = as_rejection(DigitError()), "".join(traceback.format_exception(error)), True
    fault = {"status": refused.status, "code": refused.code, "message": str(refused), "log": log}
    return REFUSED, 0.0, json.dumps(fault).encode(), ends


def _out_of_memory(limits: DecodeLimits) -> RejectedError:
    return RejectedError(
        HTTPStatus.UNPROCESSABLE_ENTITY, "bad_audio",
        f"the recording takes more than {limits.memory_bytes / 2**20:g} MB of memory to decode: send it as a plain "
        "WAV of one channel",
    )  # fmt: skip


def _load_decoders() -> None:
    """Let every library load and open what it needs, since later nothing can be opened."""
    import soundfile
    import soxr

    wav = io.BytesIO()
    soundfile.write(wav, np.zeros(1600, dtype=np.float32), 16_000, format="WAV")
    soxr.ResampleStream(16_000, SAMPLE_RATE, 1, dtype="float32", quality="HQ").resample_chunk(np.zeros(16, np.float32))
    decode_upload(wav.getvalue(), 1.0)
    try:
        import av
    except ImportError:
        return
    wav.seek(0)
    with av.open(wav, mode="r", format="wav", metadata_errors="ignore") as media:
        for frame in media.decode(audio=0):
            frame.to_ndarray()
    with contextlib.suppress(DigitError):  # its errors, too
        decode_upload(b"\x1a\x45\xdf\xa3" + bytes(100), 1.0)


def _restrict(data_bytes: int) -> None:
    """No further file or socket, no byte into a file, no more memory than this; where the system has such limits."""
    try:
        import resource
    except ImportError:  # Windows: the server's clock is the limit
        return
    free = os.dup(0)
    os.close(free)
    most = {resource.RLIMIT_NOFILE: free, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    if sys.platform == "linux":  # elsewhere it does not count what malloc maps
        most[resource.RLIMIT_DATA] = data_bytes
    for kind, limit in most.items():
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, limit))


def _allow_cpu(seconds: float) -> None:
    """Let the system end the process (SIGPROF) after so much processor time from now; 0 stands for any."""
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _data_bytes() -> int:
    """Private memory of this process that can be written to; 0 where the system does not say."""
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
