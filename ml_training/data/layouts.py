"""Which files of a folder are recordings of digits, and what their names and folders say: digit, speaker, number.

Read are files named `{digit}_{speaker}_{index}` side by side (FSDD); folders 0 ... 9 or zero ... nine with files of any
name in and below them (Speech Commands among these); such folders below one for each speaker; and a folder for each
speaker with files `{digit}_{speaker}_{index}` (AudioMNIST).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from digit_detector.audio import AUDIO_SUFFIXES
from digit_detector.errors import DataError
from digit_detector.labels import LABELS
from ml_training.data import fsdd
from ml_training.data.clip_files import ClipFile, read_clip
from ml_training.data.corpus import UNKNOWN_SPEAKER

MAX_SKIPPED = 0.05  # share of bad files that a data set may have
EXPECTED = (
    "files {digit}_{speaker}_{index}.wav, folders 0 ... 9 or zero ... nine (Speech Commands), a folder for each "
    "speaker (AudioMNIST), or a table of path and label (.csv, .tsv)"
)

DIGIT_FIRST = re.compile(r"(?P<digit>\d)_(?P<speaker>[^_]+)_(?P<index>\d{1,9})(-\d+)?")
_SPEECH_COMMANDS = re.compile(r"(?P<speaker>[^_]+)_nohash_(?P<index>\d{1,9})")
_DIGITS = {name: digit for digit, word in enumerate(LABELS) for name in (str(digit), word)}


def digit_of(name: str) -> int | None:
    """The digit that a name means: 7 for "7", "seven" or "Seven"; None for any other."""
    return _DIGITS.get(name.strip().lower())


def clips_of(folder: Path) -> tuple[list[ClipFile], bool]:
    """The audio files of a folder, and whether its layout numbers recordings as FSDD does. Raises DataError."""
    try:
        flat = fsdd.recordings_folder(folder)
        clips = [named_clip(file, flat) for file in _audio_files(flat)]
        if any(not clip.fault for clip in clips):
            below = _labelled(flat, flat)
            return clips + below, not below
        for root in dict.fromkeys((flat, folder, folder / "data")):
            if found := _speakers_or_digits(root):
                return found, False
        return clips, False
    except OSError as error:
        raise DataError(f"cannot read {error.filename or folder}: {error.strerror or error}") from error


def _speakers_or_digits(root: Path) -> list[ClipFile]:
    """The clips of folders that are named after digits, or else after speakers; empty where there are none."""
    if not root.is_dir():
        return []
    labelled = _labelled(root, root)
    speakers = [
        named_clip(file, root, speaker=folder.name) for folder in _folders(root) for file in _audio_files(folder)
    ]
    if not labelled:
        good = any(not clip.fault for clip in speakers)
        return speakers if good else [clip for folder in _folders(root) for clip in _labelled(folder, root)] or speakers
    # AudioMNIST with speakers called 1, 2, ... : files in folder 3 are named 7_3_0.wav.
    inside = [clip for clip in speakers if digit_of(clip.file.split("/")[0]) is not None]
    bad = sum(bool(clip.fault) for clip in inside)
    return speakers if inside and bad <= MAX_SKIPPED * len(inside) else labelled


def _labelled(folder: Path, root: Path) -> list[ClipFile]:
    """All files in and below those folders in `folder` that are named after digits.

    The speaker is the sub-folder, else what a name as in FSDD or Speech Commands says, else, where `folder` is not the
    `root`, its name.
    """
    clips = []
    for place in _folders(folder):
        digit = digit_of(place.name)
        if digit is None:
            continue
        for position, file in enumerate(_audio_below(place)):
            inner = file.relative_to(place).parts[:-1]
            match = _SPEECH_COMMANDS.fullmatch(file.stem) or DIGIT_FIRST.fullmatch(file.stem)
            if match is not None and match.groupdict().get("digit", str(digit)) != str(digit):
                match = None  # 7_rec_1.wav in folder 3: the folder says what is spoken
            speaker = inner[0] if inner else folder.name if folder != root else match["speaker"] if match else ""
            clips.append(
                ClipFile(
                    file.relative_to(root).as_posix(),
                    partial(read_clip, file),
                    digit,
                    speaker or UNKNOWN_SPEAKER,
                    int(match["index"]) if match else position,
                    path=file,
                )
            )
    return clips


def named_clip(path: Path, root: Path, speaker: str | None = None) -> ClipFile:
    """What the name {digit}_{speaker}_{index} of a file says; `speaker` is what the folder it lies in says."""
    file, read = path.relative_to(root).as_posix(), partial(read_clip, path)
    match = DIGIT_FIRST.fullmatch(path.stem)
    if match is None:
        return ClipFile(file, read, fault="its name is not {digit}_{speaker}_{index}", path=path)
    if speaker is not None and match["speaker"] != speaker:
        fault = f"its name says speaker {match['speaker']}, its folder {speaker}"
        return ClipFile(file, read, fault=fault, path=path)
    return ClipFile(file, read, int(match["digit"]), match["speaker"], int(match["index"]), path=path)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _audio_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_audio(path))


def _is_audio(path: Path) -> bool:
    return path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _audio_below(folder: Path) -> list[Path]:
    """Audio files in a folder and in those below it, links included; a folder that is met again is passed over."""
    return sorted(path for path in _files_below(folder) if _is_audio(path))


def _files_below(folder: Path) -> Iterator[Path]:
    seen = {os.path.realpath(folder)}

    def refuse(error: OSError) -> None:
        raise error

    for where, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        places = {name: os.path.realpath(os.path.join(where, name)) for name in sorted(folders)}
        folders[:] = [name for name, place in places.items() if not name.startswith(".") and place not in seen]
        seen.update(places[name] for name in folders)
        yield from (Path(where, name) for name in files)
