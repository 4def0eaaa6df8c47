"""A folder of recordings for the acoustic model: words of the tiny corpus, a table of utterances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE
from ml_training.acoustic.dataset import AcousticData, Source, load_acoustic_data
from ml_training.data.corpus import Corpus

SOURCES = (
    Source("words", "words", 0.6, exclude=("*_speaker3_*",), only_digits=True),
    Source("strings", "utterances", 0.4),
)


@pytest.fixture(scope="session")
def corpora(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpora")
    (root / "words").mkdir()
    (root / "strings").mkdir()
    clips = {}
    for name, waveform, length in zip(tiny_corpus.files, tiny_corpus.waveforms, tiny_corpus.lengths, strict=True):
        begin = (NUM_SAMPLES - length) // 2
        clips[name] = waveform[begin : begin + length]
        soundfile.write(root / "words" / name, clips[name], SAMPLE_RATE)
    rows = ["file\tspeaker\tfold\tdigits\ttext"]
    for i in range(6):
        sound = np.concatenate([clips[f"{d}_speaker{i % 3}_{i % 5}.wav"] for d in (i, 3, 7)])
        soundfile.write(root / "strings" / f"{i}.wav", sound, SAMPLE_RATE)
        rows.append(f"{i}.wav\tspeaker{i % 3}\t{i % 2}\t{i}37\t{i}37")
    (root / "strings" / "clips.tsv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="session")
def acoustic_data(corpora: Path) -> AcousticData:
    return load_acoustic_data(corpora, SOURCES)
