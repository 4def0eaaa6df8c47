"""Which clips the shipped models were scored on: names in the public sources and hashes of the samples.

    python benchmarks/evaluation_manifest.py [--output digit_detector/pretrained/evaluation_clips.csv]

Reads $DIGIT_DATA_DIR (FSDD's official test part) and the evaluation folders of $DIGIT_CORPORA_DIR. Decoding the
same clips to 16-bit mono at the rate given (soxr, very high quality) rebuilds the sets; equal hashes prove it.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import soundfile

from digit_detector.audio import AUDIO_SUFFIXES
from digit_detector.labels import LABELS
from ml_training.data import fsdd
from ml_training.data.corpus import OFFICIAL_TEST_INDICES

OUTPUT = Path(__file__).resolve().parents[1] / "digit_detector" / "pretrained" / "evaluation_clips.csv"
SETS = ("strangers", "words/eval", "noise/eval", "speech/eval")
COLUMNS = ("set", "file", "original", "sample_rate", "samples", "sha256")


def original_name(name: str) -> str:
    """The name of a clip in its public source."""
    kind, middle, last = name.rsplit("_", 2) if name.count("_") > 1 else (name, "", "")
    if kind == "esc10":
        return f"ESC-10 {last}.ogg"
    if kind == "background":
        return f"Speech Commands _background_noise_/{middle.replace('-', '_')}.wav"
    if kind == "sentence":
        return f"speech-to-intent-benchmark {middle}*.wav"
    word = LABELS[int(kind)] if kind.isdigit() else kind
    return f"Speech Commands {word}/{middle}_nohash_{last}.wav"


def list_clips() -> Iterator[tuple[str, Path, str]]:
    """Yields set, file and original name of every clip."""
    recordings = fsdd.recordings_folder(Path(os.environ["DIGIT_DATA_DIR"]))
    for path in sorted(recordings.glob("*.wav")):
        if int(path.stem.split("_")[2]) < OFFICIAL_TEST_INDICES:
            yield "fsdd official test", path, f"FSDD v1.0.10 recordings/{path.name}"
    for name in SETS:
        for path in sorted(Path(os.environ["DIGIT_CORPORA_DIR"], name).iterdir()):
            if path.suffix in AUDIO_SUFFIXES:
                yield name, path, original_name(path.stem)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    missing = [name for name in ("DIGIT_DATA_DIR", "DIGIT_CORPORA_DIR") if not os.environ.get(name)]
    if missing:
        sys.exit(f"${' and $'.join(missing)} not set: expected FSDD, and the folder that holds {', '.join(SETS)}")
    rows = []
    for name, path, source in list_clips():
        samples, rate = soundfile.read(path, dtype="int16")
        rows.append((name, path.name, source, rate, len(samples), hashlib.sha256(samples.astype("<i2")).hexdigest()))
    with arguments.output.open("w", newline="", encoding="utf-8") as file:  # not before: it is part of the package
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    print(f"{arguments.output}: {len(rows)} clips")
    return 0


if __name__ == "__main__":
    sys.exit(main())
