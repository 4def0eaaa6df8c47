"""Recordings to arrays: every clip decoded, cut to one second, labelled, with its speaker.

Folders are read as layouts.py says, tables of path and label as tables.py does.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from digit_detector.errors import DataError, DownloadError
from ml_training.config import TrainConfig
from ml_training.data import fsdd
from ml_training.data.clip_files import ClipFile, decoded, hashes_of, wav_tree_hash
from ml_training.data.corpus import OFFICIAL_TEST_INDICES, TEST, TRAIN, UNKNOWN_SPEAKER, Corpus
from ml_training.data.download import Progress
from ml_training.data.layouts import EXPECTED, MAX_SKIPPED, clips_of, named_clip
from ml_training.data.mapped_arrays import concatenate
from ml_training.data.tables import clips_of_table, is_table
from ml_training.data.tts import cached_digits
from ml_training.results import SkippedClip

__all__ = ["MAX_SKIPPED", "Corpus", "load_corpus", "load_folder"]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def load_corpus(config: TrainConfig, report: Callable[[str], None] = _say, progress: Progress | None = None) -> Corpus:
    """The clips that `config.dataset` and `config.data_dir` ask for, and those of `config.extra_dir` after them.

    fsdd: FSDD v1.0.10 from `--data_dir`, $DIGIT_DATA_DIR, the user's cache or a download. auto: the
    same, but other recordings will do, and where none can be had at all, synthetic speech. folder:
    the recordings of that folder or table. synthetic: synthetic speech.

    `report` receives lines for people, `progress` the bytes of a download, so far and in all.
    Raises DataError, of which DownloadError is a kind.
    """
    corpus = _load_main(config, report, progress)
    return corpus if config.extra_dir is None else _together(corpus, load_folder(config.extra_dir))


def _together(first: Corpus, second: Corpus) -> Corpus:
    """Both as one; the numbers of the second's recordings are none of the official test part's."""
    shared = set(first.speakers) & set(second.speakers) - {UNKNOWN_SPEAKER}
    if shared:
        raise DataError(
            f"{first.name} and {second.name} share speakers ({', '.join(sorted(shared)[:5])}): rename them if they are "
            "others, or leave extra_dir out"
        )
    sources = (*first.recordings, *second.recordings)
    return Corpus(
        name=f"{first.name} and {second.name}",
        waveforms=concatenate([first.waveforms, second.waveforms]),
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
        parts=first.parts and first.parts + (TRAIN,) * len(second),
    )


def _load_main(config: TrainConfig, report: Callable[[str], None], progress: Progress | None) -> Corpus:
    if config.dataset == "synthetic":
        return _synthetic(config.seed, report)
    path = fsdd.chosen_path(config.data_dir)
    if config.dataset == "folder":
        if path is None:
            raise DataError("dataset 'folder' needs a folder or table of recordings: set --data_dir or $DIGIT_DATA_DIR")
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
    corpus = cached_digits(seed)
    report(f"synthetic speech: {len(corpus)} clips in {len(set(corpus.speakers))} voices of espeak-ng")
    return corpus


def _load_chosen(path: Path, only_fsdd: bool, report: Callable[[str], None]) -> Corpus:
    """What the user pointed at: FSDD in a folder or an archive or, unless `only_fsdd`, any other recordings."""
    if is_table(path):
        if only_fsdd:
            raise DataError(f"{path} is a table: train on what it names with --dataset folder")
        corpus = load_folder(path)
        report(f"{path}: {len(corpus)} clips of your own")
        return corpus
    if not path.is_dir():
        files = fsdd.read_archive(path)
        check_is_fsdd(path, fsdd.content_hash(files), "unpack it, and train on its folder with --dataset folder")
        clips = [named_clip(Path(file), Path()) for file in files]
        clips = [replace(clip, read=partial(files.__getitem__, clip.file), path=None) for clip in clips]
        return _collect(path.name, clips, official=True)
    if only_fsdd:
        found = wav_tree_hash(fsdd.recordings_folder(path))
        check_is_fsdd(path, found, "train on it as it is with --dataset folder")
    corpus = load_folder(path)
    if corpus.data_hash != fsdd.TREE_HASH:
        found = wav_tree_hash(fsdd.recordings_folder(path))
        report(
            f"{path} is not {fsdd.NAME} (tree hash {found}, expected {fsdd.TREE_HASH}): using its {len(corpus)} clips "
            "as your own recordings"
        )
    return corpus


def check_is_fsdd(path: Path, found: str, otherwise: str) -> None:
    """Raise DataError unless the tree hash `found` of what lies at `path` is FSDD's."""
    if found != fsdd.TREE_HASH:
        raise DataError(
            f"{path} is not {fsdd.NAME}: its recordings have the tree hash {found}, expected {fsdd.TREE_HASH}; leave "
            f"--data_dir and $DIGIT_DATA_DIR out to download it, or {otherwise}"
        )


def load_folder(path: str | os.PathLike[str], name: str | None = None) -> Corpus:
    """Every clip of a folder in one of the layouts, or of a table of path and label, in the order of the file names.

    Bad files are listed in `Corpus.skipped`. Raises DataError when there is no such folder or table, when it has none
    of the layouts, or more than 5 % of its files are bad.
    """
    place, clips, official = find_clips(path)
    return _collect(place, clips, official, name)


def find_clips(path: str | os.PathLike[str]) -> tuple[str, list[ClipFile], bool]:
    """What load_folder would decode: a name for the whole, the clips, and whether they are numbered as FSDD's are.

    Reads no recording. Raises DataError for what names and labels alone tell.
    """
    place = Path(os.path.expanduser(path))
    if is_table(place) and place.is_file():
        name, clips, official = place.stem, clips_of_table(place), False
    elif place.is_dir():
        name = place.resolve().name
        clips, official = clips_of(place)
    else:
        raise DataError(f"{place} is not a folder: expected a folder of recordings, or a table of them (.csv, .tsv)")
    refused = [clip for clip in clips if clip.fault]
    if len(refused) == len(clips):
        first = f", {_first(refused[0].file, refused[0].fault, len(refused))}" if refused else ""
        raise DataError(f"{name} holds no recordings of digits ({len(clips)} audio files{first}): expected {EXPECTED}")
    _check_skipped(name, [SkippedClip(clip.file, clip.fault) for clip in refused], len(clips))
    return name, clips, official


# --- decoding ------------------------------------------------------------------------------------


def _collect(folder: str, clips: list[ClipFile], official: bool, name: str | None = None) -> Corpus:
    """Decode clips into one corpus, sorted by file name.

    Without a `name` it is called FSDD where its bytes are FSDD's, and after its `folder` elsewhere.
    """
    clips = sorted(clips, key=lambda clip: clip.file)
    hashes = hashes_of(clips)
    digest = hashlib.sha256()
    for clip, found in zip(clips, hashes, strict=True):
        digest.update(os.fsencode(f"{clip.file}\0{found.sha256}{clip.annotation}\n"))
    good = decoded(clips, hashes)
    _check_skipped(folder, good.skipped, len(clips))
    # Labels of a table may be others than the names of the files.
    is_fsdd = (
        not any(clip.annotation for clip in clips)
        and fsdd.tree_hash({clip.file: found.blob for clip, found in zip(clips, hashes, strict=True)}) == fsdd.TREE_HASH
    )
    kept = [clips[row] for row in good.kept]
    parts = tuple(clip.part for clip in kept if clip.part)
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
        official_split=TEST in parts or (official and _numbered_like_fsdd(kept)),
        skipped=good.skipped,
        parts=parts,
    )


def _check_skipped(name: str, skipped: Sequence[SkippedClip], files: int) -> None:
    if len(skipped) > MAX_SKIPPED * files:
        raise DataError(
            f"{len(skipped)} of {files} files of {name} cannot be used ({len(skipped) / files:.1%}, at most "
            f"{MAX_SKIPPED:.0%} may be bad), {_first(skipped[0].file, skipped[0].reason, len(skipped))}: mend or "
            "remove them"
        )


def _first(file: str, reason: str, count: int) -> str:
    """The first of some refused files and why, and how many more there are."""
    return f"first {file}: {reason}" + (f", and {count - 1} more" if count > 1 else "")


def _numbered_like_fsdd(clips: Iterable[ClipFile]) -> bool:
    """Whether each speaker has, of each digit, recordings on both sides of the official border."""
    sides: dict[tuple[str, int], set[bool]] = {}
    for clip in clips:
        sides.setdefault((clip.speaker, clip.digit), set()).add(clip.index < OFFICIAL_TEST_INDICES)
    return all(len(found) == 2 for found in sides.values())
