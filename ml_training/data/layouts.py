"""Which recordings a folder or a table names, and what names, folders and columns say: digit, speaker, number, part.

Folders hold files named `{digit}_{speaker}_{index}` side by side (FSDD); folders 0 ... 9 or zero ... nine with files of
any name in and below them (Speech Commands); such folders below one for each speaker; or a folder for each speaker with
files `{digit}_{speaker}_{index}` (AudioMNIST). Tables are CSV or TSV files with a path and a label in each row, perhaps
a speaker and a part.
"""

from __future__ import annotations

import os
import re
from functools import partial
from itertools import chain
from pathlib import Path

from digit_detector.audio import AUDIO_SUFFIXES, list_audio_files
from digit_detector.errors import DataError
from digit_detector.labels import LABELS
from digit_detector.table_files import read_rows
from ml_training.data import fsdd
from ml_training.data.clip_files import ClipFile, read_clip
from ml_training.data.corpus import PARTS, TEST, TRAIN, UNKNOWN_SPEAKER, VALIDATION

MAX_SKIPPED = 0.05  # share of bad files that a data set may have
MAX_ROWS = 2_000_000
EXPECTED = (
    "files {digit}_{speaker}_{index}.wav, folders 0 ... 9 or zero ... nine (Speech Commands), a folder for each "
    "speaker (AudioMNIST), or a table of path and label (.csv, .tsv)"
)
EXPECTED_COLUMNS = (
    "a header with columns path/file/filename and label/digit/word, and speaker and split if wanted; or path,label "
    "without a header"
)
COLUMNS = {  # column -> its names
    "path": ("path", "file", "filename"),
    "label": ("label", "digit", "word"),
    "speaker": ("speaker",),
    "split": ("split",),
}
_PARTS = {
    "train": TRAIN, "training": TRAIN, "validation": VALIDATION, "valid": VALIDATION, "val": VALIDATION,
    "dev": VALIDATION, "test": TEST, "testing": TEST,
}  # fmt: skip
_FSDD = re.compile(r"(?P<digit>\d)_(?P<speaker>[^_]+)_(?P<index>\d{1,9})(-\d+)?")
_SPEECH_COMMANDS = re.compile(r"(?P<speaker>[^_]+)_nohash_(?P<index>\d{1,9})")
_DIGITS = {name: digit for digit, word in enumerate(LABELS) for name in (str(digit), word)}


def digit_of(name: str) -> int | None:
    """The digit that a name means: 7 for "7", "seven" or "Seven"; None for any other."""
    return _DIGITS.get(name.strip().lower())


def noise_files(folder: str) -> list[Path]:
    """Every audio file in and below `folder`, the setting noise_dir. Raises DataError where there is none."""
    return _files_below(folder, "noise_dir", "background noise", "rain.wav")


def word_files(folder: str) -> list[Path]:
    """The same of non_digit_dir, without those whose name or folder is a digit. Raises DataError if none are left."""
    return _files_below(folder, "non_digit_dir", "words that are no digits", "yes_anna_0.wav", without_digits=True)


def _files_below(folder: str, setting: str, expected: str, example: str, without_digits: bool = False) -> list[Path]:
    root = Path(os.path.expanduser(folder))
    if not root.is_dir():
        raise DataError(f"{setting} {folder} is not a folder: expected one with recordings of {expected}")
    try:
        files = list_audio_files(root)
    except OSError as error:
        raise DataError(f"cannot read {error.filename or folder}: {error.strerror or error}") from error
    if without_digits:
        files = [file for file in files if not {digit_of(file.parent.name), digit_of(file.stem.split("_")[0])} - {None}]
    if not files:
        raise DataError(f"{setting} {folder} holds no recordings of {expected}, e.g. {example}")
    return files


# --- folders -------------------------------------------------------------------------------------


def clips_of(folder: Path) -> tuple[list[ClipFile], bool]:
    """The audio files of a folder, and whether its layout numbers recordings as FSDD does. Raises DataError."""
    try:
        flat = fsdd.recordings_folder(folder)
        clips = [named_clip(file, flat) for file in _audio_files(flat)]
        if any(not clip.fault for clip in clips):
            below = _labelled_clips(flat, flat)
            return clips + below, not below
        for root in dict.fromkeys((flat, folder, folder / "data")):
            if root.is_dir() and (found := _clips_of_folders(root)):
                return found, False
        return clips, False
    except OSError as error:
        raise DataError(f"cannot read {error.filename or folder}: {error.strerror or error}") from error


def named_clip(path: Path, root: Path, speaker: str | None = None) -> ClipFile:
    """The clip of a file named {digit}_{speaker}_{index}; `speaker` is the name of a speaker's folder."""
    file, read = path.relative_to(root).as_posix(), partial(read_clip, path)
    match = _FSDD.fullmatch(path.stem)
    if match is None:
        return ClipFile(file, read, fault="its name is not {digit}_{speaker}_{index}")
    if speaker is not None and match["speaker"] != speaker:
        return ClipFile(file, read, fault=f"its name says speaker {match['speaker']}, its folder {speaker}")
    return ClipFile(file, read, int(match["digit"]), match["speaker"], int(match["index"]))


def _clips_of_folders(root: Path) -> list[ClipFile]:
    """The clips of folders that are named after digits, or else after speakers."""
    labelled = _labelled_clips(root, root)
    speakers = [
        named_clip(file, root, speaker=folder.name) for folder in _folders(root) for file in _audio_files(folder)
    ]
    if not labelled:
        good = any(not clip.fault for clip in speakers)
        below = [] if good else [clip for folder in _folders(root) for clip in _labelled_clips(folder, root)]
        return below or speakers
    # AudioMNIST with speakers called 1, 2, ... : files in folder 3 are named 7_3_0.wav.
    inside = [clip for clip in speakers if digit_of(clip.file.split("/")[0]) is not None]
    bad = sum(bool(clip.fault) for clip in inside)
    return speakers if inside and bad <= MAX_SKIPPED * len(inside) else labelled


def _labelled_clips(folder: Path, root: Path) -> list[ClipFile]:
    """All files in and below those folders in `folder` that are named after digits.

    The speaker is the sub-folder, else that of a name as in FSDD or Speech Commands, else, unless `folder` is the
    `root`, its name.
    """
    clips = []
    for place in _folders(folder):
        digit = digit_of(place.name)
        for position, file in enumerate(list_audio_files(place) if digit is not None else ()):
            inner = file.relative_to(place).parts[:-1]
            match = _SPEECH_COMMANDS.fullmatch(file.stem) or _FSDD.fullmatch(file.stem)
            if match is not None and match.groupdict().get("digit", str(digit)) != str(digit):
                match = None  # 7_rec_1.wav in folder 3: the folder is the label
            speaker = inner[0] if inner else folder.name if folder != root else match["speaker"] if match else ""
            index = int(match["index"]) if match else position
            name, read = file.relative_to(root).as_posix(), partial(read_clip, file)
            clips.append(ClipFile(name, read, digit or 0, speaker or UNKNOWN_SPEAKER, index))
    return clips


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _audio_files(folder: Path) -> list[Path]:
    paths = (path for path in folder.iterdir() if path.suffix.lower() in AUDIO_SUFFIXES)
    return sorted(path for path in paths if not path.name.startswith(".") and path.is_file())


# --- tables --------------------------------------------------------------------------------------


def clips_of_table(path: Path) -> list[ClipFile]:
    """A clip for each row, its file relative to the table's folder.

    A row that names no digit or no file, or the file of an earlier row, becomes a clip with a fault. Raises DataError
    for a table that cannot be read, has no columns of path and label, contradicts itself or divides only some rows.
    """
    rows = read_rows(path)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path} is empty: expected {EXPECTED_COLUMNS}")
    columns = _columns(path, first[1])
    if columns is None:  # no header
        columns, rows = {"path": 0, "label": 1}, chain([first], rows)
    clips: list[ClipFile] = []
    earlier: dict[str, tuple[int, int]] = {}  # file -> line and digit of the row that names it
    for line, cells in rows:
        if len(clips) == MAX_ROWS:
            raise DataError(f"{path} has more than {MAX_ROWS} rows: divide it")
        values = {name: cells[place].strip() if place < len(cells) else "" for name, place in columns.items()}
        clip = _clip_of_row(path, line, values)
        if not clip.fault:
            file = os.path.normpath(values["path"])
            before, digit = earlier.setdefault(file, (line, clip.digit))
            if digit != clip.digit:
                raise DataError(
                    f"{path}: line {line} labels {clip.file} {LABELS[clip.digit]}, line {before} {LABELS[digit]}: "
                    "leave one out"
                )
            if before != line:
                clip = _faulty_row(f"{clip.file} (line {line})", f"line {before} of the table names it already")
        clips.append(clip)
    return clips


def _clip_of_row(table: Path, line: int, values: dict[str, str]) -> ClipFile:
    file = _printable(values["path"])
    if not values["path"] or "\0" in values["path"]:
        return _faulty_row(f"line {line}", "it names no file")
    digit = digit_of(values["label"])
    if digit is None:
        fault = f"line {line} labels it {values['label']!r}, expected 0 to 9 or zero to nine"
        return _faulty_row(f"{file} (line {line})", fault)
    part = _PARTS.get(values.get("split", "").lower(), "")
    if "split" in values and not part:
        raise DataError(
            f"{table}: line {line} has the split {values['split']!r}: expected one of {', '.join(PARTS)} in every row"
        )
    read = partial(read_clip, Path(os.path.normpath(table.parent / values["path"])))
    speaker = _printable(values.get("speaker", "")) or UNKNOWN_SPEAKER
    return ClipFile(file, read, digit, speaker, line, part=part, annotation=f"\0{digit}\0{speaker}\0{part}")


def _faulty_row(file: str, fault: str) -> ClipFile:
    return ClipFile(file, bytes, fault=fault)  # of no bytes: nothing is opened for it


def _columns(path: Path, cells: list[str]) -> dict[str, int] | None:
    """The place of each column in a header; None where the first row is a clip. Raises DataError."""
    names = [cell.strip().lower() for cell in cells]
    found = {use: [names.index(name) for name in known if name in names] for use, known in COLUMNS.items()}
    for use, places in found.items():
        if len(places) > 1:
            raise DataError(f"{path} has several columns of {use} ({', '.join(COLUMNS[use])}): leave one")
    if found["path"] and found["label"]:
        return {use: places[0] for use, places in found.items() if places}
    if len(cells) == 2 and digit_of(cells[1]) is not None:
        return None
    shown = ",".join(_printable(cell) for cell in cells)[:80]
    raise DataError(f"{path} begins with {shown!r}: expected {EXPECTED_COLUMNS}")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
