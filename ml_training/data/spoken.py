"""Synthetic speech that is said once: from the cache in use, where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib import metadata

import numpy as np

from digit_detector import audio
from ml_training.data import cache, espeak_worker, synthetic
from ml_training.data.array_file import Arrays, Block, Key
from ml_training.data.corpus import Corpus
from ml_training.data.rows import Rows, Source, as_array
from ml_training.data.synthetic import DEFAULT_TAKES, DEFAULT_VOICES, synthesise
from ml_training.results import Floats


def spoken_digits(seed: int = 0, voices: int = DEFAULT_VOICES, takes: int = DEFAULT_TAKES) -> Corpus:
    """What synthesise says, and raises where it is not in the cache."""

    def blocks() -> Iterator[Block]:
        said = synthesise(seed, voices, takes)
        names = cache.text([said.name, said.speakers, said.files, said.data_hash])
        yield {
            "waveforms": said.waveforms, "lengths": said.lengths, "labels": said.labels, "indices": said.indices,
            "names": names,
        }  # fmt: skip

    if cache.current() is None:
        return synthesise(seed, voices, takes)
    arrays, waveforms = from_cache("voices", {"seed": seed, "voices": voices, "takes": takes, **engine()}, blocks)
    name, speakers, files, data_hash = cache.said(arrays["names"])
    lengths, labels, indices = (np.array(arrays[column]) for column in ("lengths", "labels", "indices"))
    return Corpus(
        name=name, waveforms=waveforms, lengths=lengths, labels=labels, speakers=tuple(speakers), indices=indices,
        files=tuple(files), data_hash=data_hash, synthetic=True, official_split=False,
    )  # fmt: skip


def from_cache(kind: str, key: Key, blocks: Callable[[], Iterable[Block]]) -> tuple[Arrays, Floats]:
    """The arrays of an entry, and its waveforms, which lie in its file where it has one."""
    stored = cache.kept(kind, lambda: key, blocks)
    waveforms = stored.arrays["waveforms"]
    if "waveforms" in stored.places:
        source = Source(waveforms, stored.places["waveforms"], cache.key_hash(kind, key))
        return stored.arrays, as_array(Rows([source]))
    return stored.arrays, waveforms


def engine() -> dict[str, str]:
    """What decides how speech sounds besides what is asked for."""
    packages = ("numpy", "soxr", "espeakng-loader")
    try:
        versions = {name: metadata.version(name) for name in packages}
    except metadata.PackageNotFoundError:  # whoever synthesises says what is missing
        versions = {}
    return {**versions, "engine": cache.code_hash(audio, synthetic, espeak_worker)}
