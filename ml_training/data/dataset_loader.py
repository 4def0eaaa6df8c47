"""Recordings to arrays: every clip decoded, cut to one second, labelled, with its speaker."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from digit_detector.errors import DataError, DownloadError
from digit_detector.table_files import is_table
from ml_training.config import AugmentationConfig, TrainConfig
from ml_training.data import fsdd, layouts
from ml_training.data.clip_files import ClipFile, decode_files, hash_files
from ml_training.data.corpus import OFFICIAL_TEST_INDICES, TEST, TRAIN, UNKNOWN_SPEAKER, Corpus, append_clips
from ml_training.data.layouts import MAX_SKIPPED, named_clip
from ml_training.data.tts import cached_digits
from ml_training.results import SkippedClip
from ml_training.utils.console import print_note

__all__ = ["MAX_SKIPPED", "Corpus", "check_data", "load_corpus", "load_folder"]

Report = Callable[[str], None]
NO_FOLDER = "dataset 'folder' needs a folder or table of recordings: set --data_dir or $DIGIT_DATA_DIR"


def load_corpus(config: TrainConfig, report: Report = print_note, progress: fsdd.Progress | None = None) -> Corpus:
    """The clips of `config.dataset` and `config.data_dir`, then those of `config.extra_digits_dir`.

    fsdd: FSDD v1.0.10 from `--data_dir`, $DIGIT_DATA_DIR, the user's cache or a download. auto: the same, or other
    recordings at these places, or, where there are none and no download succeeds, synthetic speech. folder: the
    recordings of that folder or table. synthetic: synthetic speech.

    `report` receives lines for people, `progress` the bytes of a download: so far and in all. Raises DataError, for a
    failed download its subclass DownloadError.
    """
    corpus = _load_main(config, report, progress)
    return corpus if config.extra_digits_dir is None else _join(corpus, load_folder(config.extra_digits_dir))


def _join(first: Corpus, second: Corpus) -> Corpus:
    """Both as one; no clip of the second is in the official test part."""
    shared = set(first.speakers) & set(second.speakers) - {UNKNOWN_SPEAKER}
    if shared:
        raise DataError(
            f"{first.name} and {second.name} share speakers ({', '.join(sorted(shared)[:5])}): rename them if they are "
            "others, or leave extra_digits_dir out"
        )
    sources = (*first.recordings, *second.recordings)
    files = tuple(f"{second.name}/{file}" for file in second.files)
    return append_clips(
        first,
        replace(second, indices=second.indices + OFFICIAL_TEST_INDICES, files=files),
        name=f"{first.name} and {second.name}",
        data_hash=hashlib.sha256("\n".join(sources).encode()).hexdigest(),
        skipped=first.skipped + second.skipped,
        sources=sources,
        parts=first.parts and first.parts + (TRAIN,) * len(second),
    )


def _load_main(config: TrainConfig, report: Report, progress: fsdd.Progress | None) -> Corpus:
    if config.dataset == "synthetic":
        return _load_synthetic(config.seed, report)
    path = fsdd.chosen_path(config.data_dir)
    if config.dataset == "folder":
        if path is None:
            raise DataError(NO_FOLDER)
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
        return _load_synthetic(config.seed, report)


def _load_synthetic(seed: int, report: Report) -> Corpus:
    corpus = cached_digits(seed)
    report(f"synthetic speech: {len(corpus)} clips in {len(set(corpus.speakers))} voices of espeak-ng")
    return corpus


def _load_chosen(path: Path, only_fsdd: bool, report: Report) -> Corpus:
    """FSDD in the folder or archive that the user named or, unless `only_fsdd`, any other recordings there."""
    if is_table(path):
        if only_fsdd:
            raise DataError(f"{path} is a table: train on what it names with --dataset folder")
        corpus = load_folder(path)
        report(f"{path}: {len(corpus)} clips of your own")
        return corpus
    if not path.is_dir():
        files = fsdd.read_archive(path)
        _check_is_fsdd(path, fsdd.content_hash(files), "unpack it, and train on its folder with --dataset folder")
        clips = [named_clip(Path(file), Path()) for file in files]
        return _decode([replace(c, read=partial(files.__getitem__, c.file)) for c in clips], path.name, official=True)
    if only_fsdd:
        _check_is_fsdd(path, fsdd.folder_hash(path), "train on it as it is with --dataset folder")
    corpus = load_folder(path)
    if corpus.data_hash != fsdd.TREE_HASH:
        report(
            f"{path} is not {fsdd.NAME} (tree hash {fsdd.folder_hash(path)}, expected {fsdd.TREE_HASH}): using its "
            f"{len(corpus)} clips as your own recordings"
        )
    return corpus


def _check_is_fsdd(path: Path, found: str, otherwise: str) -> None:
    if found != fsdd.TREE_HASH:
        raise DataError(
            f"{path} is not {fsdd.NAME}: its recordings have the tree hash {found}, expected {fsdd.TREE_HASH}; leave "
            f"--data_dir and $DIGIT_DATA_DIR out to download it, or {otherwise}"
        )


def load_folder(path: str | os.PathLike[str], name: str | None = None) -> Corpus:
    """Every clip of a folder in one of the layouts, or of a table of path and label, in the order of the file names.

    Bad files are listed in `Corpus.skipped`. Raises DataError for a folder or table that does not exist, has none of
    the layouts, or whose files are bad by more than 5 %.
    """
    found_name, clips, official = find_clips(path)
    return _decode(clips, found_name, official, name)


def find_clips(path: str | os.PathLike[str]) -> tuple[str, list[ClipFile], bool]:
    """Name and undecoded clips of a folder or table, and whether they are numbered as FSDD's. Raises DataError."""
    place = Path(os.path.expanduser(path))
    if is_table(place) and place.is_file():
        name, clips, official = place.stem, layouts.clips_of_table(place), False
    elif place.is_dir():
        name = place.resolve().name
        clips, official = layouts.clips_of(place)
    else:
        raise DataError(f"{place} is not a folder: expected a folder of recordings, or a table of them (.csv, .tsv)")
    refused = [SkippedClip(clip.file, clip.fault) for clip in clips if clip.fault]
    if len(refused) == len(clips):
        first = f", {_first(refused)}" if refused else ""
        raise DataError(
            f"{name} holds no recordings of digits ({len(clips)} audio files{first}): expected {layouts.EXPECTED}"
        )
    _check_skipped(name, refused, len(clips))
    return name, clips, official


def check_data(config: TrainConfig) -> None:
    """Raise DataError where names and labels alone show that recordings are missing or cannot be used."""
    if config.dataset != "synthetic":
        path = fsdd.chosen_path(config.data_dir)
        if config.dataset == "folder" and path is None:
            raise DataError(NO_FOLDER)
        if config.dataset == "fsdd" and path is not None and path.is_dir():
            _check_is_fsdd(path, fsdd.folder_hash(path), "train on it with --dataset folder")
        elif path is not None and (config.dataset == "folder" or path.is_dir() or is_table(path)):
            find_clips(path)
    if config.extra_digits_dir is not None:
        find_clips(config.extra_digits_dir)
    if config.non_digit_dir is not None:
        layouts.word_files(config.non_digit_dir)
    augmentation = config.augmentation
    if isinstance(augmentation, AugmentationConfig):
        augmentation = vars(augmentation)
    if isinstance(augmentation, Mapping) and augmentation.get("enabled", True) and augmentation.get("noise_dir"):
        layouts.noise_files(augmentation["noise_dir"])
    if config.teacher_dir is not None and not Path(config.teacher_dir).expanduser().is_dir():
        raise DataError(f"teacher_dir {config.teacher_dir} is not a folder: expected a folder of trained models")


def _decode(clips: list[ClipFile], found_name: str, official: bool, name: str | None = None) -> Corpus:
    """Decode clips into one corpus, sorted by file name; without a `name` FSDD's if its bytes are FSDD's."""
    clips = sorted(clips, key=lambda clip: clip.file)
    hashes = hash_files(clips)
    digest = hashlib.sha256()
    for clip, found in zip(clips, hashes, strict=True):
        digest.update(os.fsencode(f"{clip.file}\0{found.sha256}{clip.annotation}\n"))
    good = decode_files(clips, hashes)
    _check_skipped(found_name, good.skipped, len(clips))
    blobs = {clip.file: found.blob for clip, found in zip(clips, hashes, strict=True)}
    # Labels of a table may be others than the names of the files.
    is_fsdd = not any(clip.annotation for clip in clips) and fsdd.tree_hash(blobs) == fsdd.TREE_HASH
    kept = [clips[row] for row in good.kept]
    parts = tuple(clip.part for clip in kept if clip.part)
    name = name or (fsdd.NAME if is_fsdd else found_name)
    return Corpus(
        # Escaped, because plots and model metadata take no bytes that are not UTF-8.
        name=name.encode("utf-8", errors="backslashreplace").decode("utf-8"),
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
            f"{MAX_SKIPPED:.0%} may be bad), {_first(skipped)}: fix or remove them"
        )


def _first(skipped: Sequence[SkippedClip]) -> str:
    more = f", and {len(skipped) - 1} more" if len(skipped) > 1 else ""
    return f"first {skipped[0].file}: {skipped[0].reason}{more}"


def _numbered_like_fsdd(clips: Iterable[ClipFile]) -> bool:
    """Whether each speaker has, of each digit, recordings on both sides of the official border."""
    sides: dict[tuple[str, int], set[bool]] = {}
    for clip in clips:
        sides.setdefault((clip.speaker, clip.digit), set()).add(clip.index < OFFICIAL_TEST_INDICES)
    return all(len(found) == 2 for found in sides.values())
