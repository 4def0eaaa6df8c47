"""`digits listen`: print the digits spoken into a microphone or held in recordings."""

from __future__ import annotations

import contextlib
import os
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from digit_detector.audio import ENCODINGS, Floats
from digit_detector.cli.parser import OneLineParser
from digit_detector.cli.program import program
from digit_detector.cli.signals import StopSignals
from digit_detector.errors import AudioError, DataError, DigitError, MicrophoneError
from digit_detector.evaluation.streams import audio_files
from digit_detector.examples import example_recording
from digit_detector.listening.display import Display
from digit_detector.listening.microphone import STDIN, Microphone, list_microphones, note_silence, read_file
from digit_detector.streaming.config import DIGITS
from digit_detector.streaming.detector import StreamingDetector
from digit_detector.streaming.flags import add_detector_flags, add_removed_flags, read_config

Reader = Callable[..., Iterable[tuple[int, Floats]]]  # (name, warn=...) -> pieces with their rate
_PIECE = 0.25  # seconds of a file processed between two updates of the display


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Listen until Ctrl-C or the end of the files; returns the exit code."""
    parser = OneLineParser(description="Detect spoken digits live from a microphone, or in files.")
    parser.add_argument(
        "--file", nargs="+", action="extend", metavar="FILE", default=SUPPRESS,
        help="recordings instead of the microphone: files, folders, - for standard input; ends with their digits",
    )  # fmt: skip
    parser.add_argument(
        "--example", action="store_true", default=SUPPRESS, help="a bundled recording of a telephone number, as a file"
    )
    parser.add_argument(
        "--encoding", choices=ENCODINGS, default=SUPPRESS, help="of files without a header (default: by their suffix)"
    )
    parser.add_argument(
        "--rate", type=int, metavar="HZ", default=SUPPRESS, help="of files without a header (default: 8000)"
    )
    parser.add_argument("--realtime", action="store_true", help="read the file in real time")
    parser.add_argument("--device", metavar="NAME", default=SUPPRESS, help="number or name of a microphone")
    parser.add_argument("--list", action="store_true", help="list the microphones")
    parser.add_argument("--json", action="store_true", help="an object for each digit, a line each; then for each file")
    add_detector_flags(parser)
    add_removed_flags(parser, "--model_dir", "--models_dir")
    parser.add_argument("--seconds", type=float, default=SUPPRESS, help="how long to listen to the microphone")
    args = parser.parse_args(argv)
    if args.list:
        microphones = list_microphones()
        if not microphones:
            raise MicrophoneError("there is no microphone: connect one, or listen to a file with --file")
        for number, name, is_default in microphones:
            print(f"{number:3d}  {name}{'  (default)' if is_default else ''}")
        return 0
    if "example" in args:
        args.file = [*getattr(args, "file", []), str(example_recording("phone_number"))]
    if ("encoding" in args or "rate" in args) and "file" not in args:
        parser.error("--encoding and --rate belong to --file")
    if "file" in args and ("device" in args or "seconds" in args):
        parser.error("--device and --seconds are for the microphone: leave --file out, or them")
    if args.realtime and "file" not in args:
        parser.error("--realtime belongs to --file")
    if "file" in args and args.file.count(STDIN) > 1:
        parser.error("--file - was given twice: standard input can be read once")
    if "file" in args and STDIN in args.file and sys.stdin.isatty():
        parser.error("--file - reads a recording from standard input, which is a terminal: redirect a file into it")
    config = read_config(args)
    detector = StreamingDetector(config=config, model=getattr(args, "live_model", None))
    display = Display(args.json, by_utterance=config.context == DIGITS)
    with StopSignals(unit=None), contextlib.closing(display):
        if "file" in args:
            encoding, rate = getattr(args, "encoding", None), getattr(args, "rate", None)
            read = partial(read_file, realtime=args.realtime, encoding=encoding, raw_rate=rate)
            return detect_files(detector, args.file, read, display)
        device = args.device if "device" in args else None
        with Microphone(int(device) if device is not None and device.isdecimal() else device) as microphone:
            display.note(f"listening to {microphone.name}; say digits, Ctrl-C ends")
            detect(detector, note_silence(microphone, display.note), display, getattr(args, "seconds", None))
            if microphone.lost:
                display.note(f"{microphone.lost} pieces of sound were lost: this machine was too busy")
    return 0


def detect_files(detector: StreamingDetector, named: Sequence[str], read: Reader, display: Display) -> int:
    """Print the digits of every recording; `read` returns its pieces. Returns the exit code.

    One that cannot be read raises its error if it is the only one; the others of several are still processed.
    """
    several = len(named) > 1 or os.path.isdir(named[0])
    code = 0
    for name, fault in expand(named):
        try:
            if fault is not None:
                raise fault
            digits, seconds = detect(detector, read(name, warn=display.note), display)
        except DigitError as error:
            if not several:
                raise
            detector.reset()
            display.fault(name, str(error))
            code = 1
        else:
            display.summary(name, digits, seconds, several)
    return code


def expand(named: Iterable[str]) -> Iterator[tuple[str, DigitError | None]]:
    """Named files (or pipes), and every regular audio file below named folders; an error for a folder without one."""
    for name in named:
        if not os.path.isdir(name):
            yield name, None
            continue
        try:
            for file in audio_files(Path(name)):
                yield str(file), None
        except DataError as error:
            yield name, error


def detect(
    detector: StreamingDetector, pieces: Iterable[tuple[int, Floats]], display: Display, seconds: float | None = None
) -> tuple[str, float]:
    """Show the digits of (rate, samples) pieces until they or `seconds` are over -> the digits, the seconds read."""
    digits, received = "", 0.0
    for rate, piece in pieces:
        received += len(piece) / rate
        size = max(1, int(_PIECE * rate))
        for first in range(0, len(piece), size):
            try:
                detections = detector.feed(piece[first : first + size], rate, channels_first=False)
            except AudioError as error:
                raise type(error)(f"after {detector.seconds:.1f} s: {error}") from error
            for detection in detections:
                digits += str(detection.digit)
                display.show(detection)
            display.level(detector.level_db, detector.voice, detector.seconds, detector.provisional)
        if seconds is not None and detector.seconds >= seconds:
            break
    for detection in detector.flush():
        digits += str(detection.digit)
        display.show(detection)
    return digits, received
