"""Digits made into sounds that are none, without torch: the very clips that training's code makes with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ml_training.data import digit_corruption
from ml_training.data.corpus import Corpus
from ml_training.evaluation.corruption import KINDS, corrupt_digits


@pytest.mark.parametrize("seed", [0, 5, 2**31 - 1])
def test_they_are_those_of_torch_chance_included(tiny_corpus: Corpus, seed: int) -> None:
    waveforms = np.concatenate([tiny_corpus.waveforms, np.zeros((1, 8000), np.float32)])
    waveforms = np.concatenate([waveforms, np.random.default_rng(1).normal(0, 0.1, (3, 8000)).astype(np.float32)])
    lengths = np.concatenate([tiny_corpus.lengths, [8000, 8000, 7000, 20]])  # long ones are not doubled but cut off
    made = corrupt_digits(waveforms, lengths, seed)
    tensors = map(torch.from_numpy, (waveforms, lengths, np.zeros(len(lengths), np.int64)))
    clips = list(tensors)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for kind in KINDS:
            expected = digit_corruption.corrupt_digits(clips[0], clips[1], clips[2], None, [kind])[0].numpy()
            assert np.abs(expected).max() > 0.01
            np.testing.assert_allclose(made[kind], expected, rtol=1e-5, atol=1e-7)
