import signal

import numpy as np
import pytest
import torch

from digit_detector.errors import DataError
from digit_detector.labels import MFCC
from ml_training.pipelines import get_pipeline
from ml_training.training import demo_steps as demonstration
from ml_training.training.demo_steps import CLIPS_OF_A_DIGIT, _part_of, _with_ctrl_c, demonstrate


def test_every_step_is_tried_and_what_failed_decides_the_exit_code(tmp_path, monkeypatch, capsys):
    def nothing(config, report):
        raise DataError("the recordings are gone")

    monkeypatch.setattr(demonstration, "load_corpus", nothing)
    assert demonstrate(tmp_path / "out", synthetic=False) == 1
    table = capsys.readouterr().out.split("\n\n")[-2].splitlines()
    assert len(table) == 7
    assert all(line.startswith("FAILED  ") for line in table)
    assert table[0].endswith("the recordings are gone")
    assert "there are no recordings to do it with" in table[1]


@pytest.mark.parametrize("official", [True, False])
def test_a_part_has_every_digit_of_every_speaker_and_of_both_parts(tiny_corpus, official):
    doubled = np.concatenate([np.arange(len(tiny_corpus))] * 5)
    corpus = demonstration.dataclasses.replace(
        tiny_corpus,
        waveforms=tiny_corpus.waveforms[doubled],
        lengths=tiny_corpus.lengths[doubled],
        labels=tiny_corpus.labels[doubled],
        speakers=tuple(tiny_corpus.speakers[i] for i in doubled),
        files=tuple(tiny_corpus.files[i] for i in doubled),
        indices=np.concatenate([tiny_corpus.indices + 5 * turn for turn in range(5)]),
        official_split=official,
    )
    part = _part_of(corpus)
    assert len(part) == 10 * CLIPS_OF_A_DIGIT
    assert np.bincount(part.labels).tolist() == [CLIPS_OF_A_DIGIT] * 10
    assert {part.speakers.count(s) for s in set(part.speakers)} == {10 * CLIPS_OF_A_DIGIT // 4}
    assert (part.indices < 5).sum() == (10 * 4 * 3 if official else 10 * 4 * 5)
    assert part.data_hash != corpus.data_hash
    assert part.name == "part of tiny"
    for place in (0, 99, len(part) - 1):
        assert part.files[place].startswith(f"{part.labels[place]}_{part.speakers[place]}_")


@pytest.fixture
def heeding_ctrl_c():
    """Ctrl-C raises KeyboardInterrupt, also where a shell started this in the background and had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_comes_once_and_from_training_only(heeding_ctrl_c):
    model = _with_ctrl_c(get_pipeline(MFCC), clips=5).build()
    clips = torch.randn(4, 8000)
    model.fit_statistics(clips)
    model.eval()(clips), model(clips)
    model.train()(clips)
    with pytest.raises(KeyboardInterrupt):
        model(clips)
    model(clips)
    assert model.state_dict().keys() == get_pipeline(MFCC).build().state_dict().keys()
