"""Speak, and digits come out: the door behind `digits listen`."""

from __future__ import annotations

import contextlib
from argparse import SUPPRESS
from collections.abc import Iterable, Sequence

from digit_detector.listening.display import Display
from digit_detector.listening.sources import Microphone, from_file, microphones
from digit_detector.streaming.detector import StreamingDetector
from digit_detector.streaming.engine import CONFIRMING
from digit_detector.streaming.thresholds import SHIPPED, load_thresholds
from ml_training.audio import Floats
from ml_training.config import PIPELINES
from ml_training.errors import AudioError, MicrophoneError
from ml_training.flags import OneLineParser
from ml_training.inference import PRETRAINED
from ml_training.utils.program import program
from ml_training.utils.signals import StopSignals

_PIECE = 0.25  # seconds of a file that are heard between two looks at the display


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Listen until Ctrl-C or the end of the file; returns the exit code."""
    parser = OneLineParser(description="Listen to a microphone, or to a file, and tell every digit that is said.")
    parser.add_argument("--file", metavar="FILE", default=SUPPRESS, help="a recording instead of the microphone")
    parser.add_argument("--realtime", action="store_true", help="hear the file as fast as it was spoken")
    parser.add_argument("--device", metavar="NAME", default=SUPPRESS, help="number or name of a microphone")
    parser.add_argument("--list", action="store_true", help="list the microphones")
    parser.add_argument("--json", action="store_true", help="an object for each digit, a line each")
    parser.add_argument("--model_dir", "--models_dir", metavar="DIR", default=PRETRAINED, help="models that confirm")
    parser.add_argument(
        "--pipeline", nargs="+", choices=PIPELINES, default=CONFIRMING, help="which of them confirm each word"
    )
    parser.add_argument("--thresholds", metavar="FILE", default=str(SHIPPED), help="what tune-threshold wrote")
    parser.add_argument("--seconds", type=float, default=SUPPRESS, help="how long to listen to the microphone")
    args = parser.parse_args(argv)
    if args.list:
        found = microphones()
        if not found:
            raise MicrophoneError("there is no microphone: connect one, or listen to a file with --file")
        for number, name, usual in found:
            print(f"{number:3d}  {name}{'  (taken unless told)' if usual else ''}")
        return 0
    if "file" in args and ("device" in args or "seconds" in args):
        parser.error("--device and --seconds are for the microphone: leave --file out, or them")
    if args.realtime and "file" not in args:
        parser.error("--realtime belongs to --file: a microphone is never faster")
    detector = StreamingDetector(args.model_dir, args.pipeline, load_thresholds(args.thresholds))
    display = Display(args.json)
    with StopSignals(unit=None), contextlib.closing(display):
        if "file" in args:
            hear(detector, from_file(args.file, args.realtime, display.note), display)
            return 0
        device = args.device if "device" in args else None
        with Microphone(int(device) if device is not None and device.isdecimal() else device) as microphone:
            display.note(f"listening to {microphone.name}; say digits, Ctrl-C ends")
            hear(detector, microphone, display, getattr(args, "seconds", None))
            if microphone.lost:
                display.note(f"{microphone.lost} pieces of sound were lost: this machine was too busy to hear them")
    return 0


def hear(
    detector: StreamingDetector,
    pieces: Iterable[tuple[int, Floats]],
    display: Display,
    seconds: float | None = None,
) -> None:
    """Tell what is said in pieces of sound until they, or so many seconds, are over; or until somebody stops it."""
    for rate, piece in pieces:
        size = max(1, int(_PIECE * rate))
        for first in range(0, len(piece), size):
            try:
                found = detector.feed(piece[first : first + size], rate)
            except AudioError as error:
                raise type(error)(f"after {detector.seconds:.1f} s: {error}") from error
            for detection in found:
                display.tell(detection)
            display.level(detector.level_db, detector.voice, detector.seconds)
        if seconds is not None and detector.seconds >= seconds:
            break
    for detection in detector.flush():
        display.tell(detection)
