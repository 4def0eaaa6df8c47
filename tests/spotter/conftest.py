"""Training data of the spotter from the tiny corpus."""

from __future__ import annotations

import numpy as np
import pytest

from ml_training.data.corpus import Corpus
from ml_training.spotter.dataset import SpotterData, load_spotter_data


@pytest.fixture(scope="session")
def spotter_data(tiny_corpus: Corpus) -> SpotterData:
    return load_spotter_data(tiny_corpus, np.arange(len(tiny_corpus.labels)), None, None, variants=1, voices=2)
