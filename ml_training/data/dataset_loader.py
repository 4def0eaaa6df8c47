"""Recordings to arrays: every clip decoded, cut to one second, labelled, with its speaker.

Three layouts are read: files named `{digit}_{speaker}_{index}` side by side (FSDD), a folder for
each spoken word (Speech Commands), and a folder for each speaker (AudioMNIST).
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ml_training.audio import AUDIO_SUFFIXES
from ml_training.config import LABELS, TrainConfig
from ml_training.data import fsdd
from ml_training.data.corpus import OFFICIAL_TEST_INDICES, Corpus
from ml_training.data.decoded import ClipFile, decoded, hashes_of, wav_tree_hash
from ml_training.data.download import Progress
from ml_training.data.rows import joined
from ml_training.data.spoken import spoken_digits
from ml_training.errors import DataError, DownloadError
from ml_training.results import SkippedClip

__all__ = ["MAX_SKIPPED", "Corpus", "load_corpus", "load_folder"]

MAX_SKIPPED = 0.05  # share of bad files that a data set may have

_DIGIT_FIRST = re.compile(r"(?P<digit>\d)_(?P<speaker>[^_]+)_(?P<index>\d{1,9})(-\d+)?")
_SPEECH_COMMANDS = re.compile(r"(?P<speaker>[^_]+)_nohash_(?P<index>\d{1,9})")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def load_corpus(config: TrainConfig, report: Callable[[str], None] = _say, progress: Progress | None = None) -> Corpus:
    """The clips that `config.dataset` and `config.data_dir` ask for, and those of `config.extra_dir` after them.

    fsdd: FSDD v1.0.10 from `--data_dir`, $DIGIT_DATA_DIR, the user's cache or a download. auto: the
    same, but a folder of other recordings will do, and where no recordings can be had at all,
    synthetic speech. folder: the recordings in that folder. synthetic: synthetic speech.

    `report` receives lines for people, `progress` the bytes of a download, so far and in all.
    Raises DataError, of which DownloadError is a kind.
    """
    corpus = _load_main(config, report, progress)
    return corpus if config.extra_dir is None else _together(corpus, load_folder(config.extra_dir))


def _together(first: Corpus, second: Corpus) -> Corpus:
    """Both as one; the numbers of the second's recordings are none of the official test part's."""
    shared = set(first.speakers) & set(second.speakers)
    if shared:
        raise DataError(
            f"{first.name} and {second.name} share speakers ({', '.join(sorted(shared)[:5])}): rename them if they are "
            "others, or leave extra_dir out"
        )
    sources = (*first.recordings, *second.recordings)
    return Corpus(
        name=f"{first.name} and {second.name}",
        waveforms=joined([first.waveforms, second.waveforms]),
        lengths=np.concatenate([first.lengths, second.lengths]),
        labels=np.concatenate([first.labels, second.labels]),
        speakers=first.speakers + second.speakers,
        indices=np.concatenate([first.indices, second.indices + OFFICIAL_TEST_INDICES]),
        files=first.files + tuple(f"{second.name}/{file}" for file in second.files),
        data_hash=hashlib.sha256("\n".join(sources).encode()).hexdigest(),
        synthetic=first.synthetic,
        official_split=first.official_split,
        skipped=first.skipped + second.skipped,
        sources=sources,
    )


def _load_main(config: TrainConfig, report: Callable[[str], None], progress: Progress | None) -> Corpus:
    if config.dataset == "synthetic":
        return _synthetic(config.seed, report)
    path = fsdd.chosen_path(config.data_dir)
    if config.dataset == "folder":
        if path is None:
            raise DataError("dataset 'folder' needs a folder of recordings: set --data_dir or $DIGIT_DATA_DIR")
        return load_folder(path)
    if path is not None:
        return _load_chosen(path, config.dataset == "fsdd", report)
    try:
        return load_folder(fsdd.obtain(config.data_url, report, progress))
    except DownloadError as error:
        if config.dataset == "fsdd":
            raise
        report(f"!!! NO RECORDINGS: {error}")
        report(
            "!!! Falling back to synthetic speech: what is trained now is a demonstration, not fit for real voices !!!"
        )
        return _synthetic(config.seed, report)


def _synthetic(seed: int, report: Callable[[str], None]) -> Corpus:
    corpus = spoken_digits(seed)
    report(f"synthetic speech: {len(corpus)} clips in {len(set(corpus.speakers))} voices of espeak-ng")
    return corpus


def _load_chosen(path: Path, only_fsdd: bool, report: Callable[[str], None]) -> Corpus:
    """What the user pointed at: FSDD in a folder or an archive or, unless `only_fsdd`, any other recordings."""
    if not path.is_dir():
        files = fsdd.read_archive(path)
        _check_is_fsdd(path, fsdd.content_hash(files), "unpack it, and train on its folder with --dataset folder")
        clips = [_named(Path(file), Path(), _DIGIT_FIRST) for file in files]
        clips = [replace(clip, read=partial(files.__getitem__, clip.file), path=None) for clip in clips]
        return _collect(path.name, clips, official=True)
    if only_fsdd:
        found = wav_tree_hash(fsdd.recordings_folder(path))
        _check_is_fsdd(path, found, "train on it as it is with --dataset folder")
    corpus = load_folder(path)
    if corpus.data_hash != fsdd.TREE_HASH:
        found = wav_tree_hash(fsdd.recordings_folder(path))
        report(
            f"{path} is not {fsdd.NAME} (tree hash {found}, expected {fsdd.TREE_HASH}): using its {len(corpus)} clips "
            "as your own recordings"
        )
    return corpus


def _check_is_fsdd(path: Path, found: str, otherwise: str) -> None:
    if found != fsdd.TREE_HASH:
        raise DataError(
            f"{path} is not {fsdd.NAME}: its recordings have the tree hash {found}, expected {fsdd.TREE_HASH}; leave "
            f"--data_dir and $DIGIT_DATA_DIR out to download it, or {otherwise}"
        )


def load_folder(path: str | os.PathLike[str], name: str | None = None) -> Corpus:
    """Every clip of a folder in one of the three layouts, in the order of the file names.

    Bad files are listed in `Corpus.skipped`. Raises DataError when the folder is missing, has none
    of the layouts, or more than 5 % of its files are bad.
    """
    folder = Path(os.path.expanduser(path))
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: expected a folder of recordings")
    clips, official = _clips_of(folder)
    return _collect(folder.resolve().name, clips, official, name)


# --- layouts -------------------------------------------------------------------------------------


def _clips_of(folder: Path) -> tuple[list[ClipFile], bool]:
    """The audio files of a folder, and whether its layout numbers recordings as FSDD does."""
    try:
        flat = fsdd.recordings_folder(folder)
        clips = [_named(file, flat, _DIGIT_FIRST) for file in _audio_files(flat)]
        if any(not clip.fault for clip in clips):
            return clips, True
        words = [(digit, folder / word) for digit, word in enumerate(LABELS) if (folder / word).is_dir()]
        if words:
            clips = [_named(f, folder, _SPEECH_COMMANDS, digit=d) for d, word in words for f in _audio_files(word)]
            return clips, False
        inner = folder / "data" if (folder / "data").is_dir() else folder
        return [
            _named(file, inner, _DIGIT_FIRST, speaker=speaker.name)
            for speaker in sorted(inner.iterdir())
            if speaker.is_dir() and not speaker.name.startswith(".")
            for file in _audio_files(speaker)
        ], False
    except OSError as error:
        raise DataError(f"cannot read {error.filename or folder}: {error.strerror or error}") from error


def _audio_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _named(
    path: Path, root: Path, pattern: re.Pattern[str], digit: int | None = None, speaker: str | None = None
) -> ClipFile:
    """What a file's name says. `digit` and `speaker` are what the folder it lies in says."""
    file = path.relative_to(root).as_posix()
    match = pattern.fullmatch(path.stem)
    if match is None:
        shape = "{digit}_{speaker}_{index}" if pattern is _DIGIT_FIRST else "{speaker}_nohash_{index}"
        return ClipFile(file, path.read_bytes, fault=f"its name is not {shape}", path=path)
    if speaker is not None and match["speaker"] != speaker:
        fault = f"its name says speaker {match['speaker']}, its folder {speaker}"
        return ClipFile(file, path.read_bytes, fault=fault, path=path)
    said = int(match["digit"]) if digit is None else digit
    return ClipFile(file, path.read_bytes, said, match["speaker"], int(match["index"]), path=path)


# --- decoding ------------------------------------------------------------------------------------


def _collect(folder: str, clips: list[ClipFile], official: bool, name: str | None = None) -> Corpus:
    """Decode clips into one corpus, sorted by file name.

    Without a `name` it is called FSDD where its bytes are FSDD's, and after its `folder` elsewhere.
    """
    if all(clip.fault for clip in clips):
        raise DataError(
            f"{folder} holds no recordings of digits ({len(clips)} audio files): expected files "
            "{digit}_{speaker}_{index}.wav, folders zero ... nine (Speech Commands) or a folder for each speaker "
            "(AudioMNIST)"
        )
    clips = sorted(clips, key=lambda clip: clip.file)
    hashes = hashes_of(clips)
    digest = hashlib.sha256()
    for clip, found in zip(clips, hashes, strict=True):
        digest.update(os.fsencode(f"{clip.file}\0{found.sha256}\n"))
    good = decoded(clips, hashes)
    _check_skipped(folder, good.skipped, len(clips))
    is_fsdd = fsdd.tree_hash({c.file: found.blob for c, found in zip(clips, hashes, strict=True)}) == fsdd.TREE_HASH
    kept = [clips[row] for row in good.kept]
    called = name or (fsdd.NAME if is_fsdd else folder)
    return Corpus(
        # Escaped, because it ends up where bytes that are no UTF-8 fail: plots, and the model's metadata.
        name=called.encode("utf-8", errors="backslashreplace").decode("utf-8"),
        waveforms=good.waveforms,
        lengths=good.lengths,
        labels=np.array([clip.digit for clip in kept], dtype=np.int64),
        speakers=tuple(clip.speaker for clip in kept),
        indices=np.array([clip.index for clip in kept], dtype=np.int64),
        files=tuple(clip.file for clip in kept),
        data_hash=fsdd.TREE_HASH if is_fsdd else digest.hexdigest(),
        synthetic=False,
        official_split=official and _numbered_like_fsdd(kept),
        skipped=good.skipped,
    )


def _check_skipped(name: str, skipped: Sequence[SkippedClip], files: int) -> None:
    if len(skipped) > MAX_SKIPPED * files:
        first = "; ".join(f"{clip.file}: {clip.reason}" for clip in skipped[:3])
        raise DataError(
            f"{len(skipped)} of {files} files of {name} cannot be used ({len(skipped) / files:.1%}, at most "
            f"{MAX_SKIPPED:.0%} may be bad), first {first}: mend or remove them"
        )


def _numbered_like_fsdd(clips: Iterable[ClipFile]) -> bool:
    """Whether each speaker has, of each digit, recordings on both sides of the official border."""
    sides: dict[tuple[str, int], set[bool]] = {}
    for clip in clips:
        sides.setdefault((clip.speaker, clip.digit), set()).add(clip.index < OFFICIAL_TEST_INDICES)
    return all(len(found) == 2 for found in sides.values())
