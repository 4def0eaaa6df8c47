"""The choice of the default model agrees with the recordings and with the metadata of the pretrained models."""

import pytest

from digit_detector.classifier import model_file
from digit_detector.errors import ModelError
from digit_detector.inspection import read_metadata
from digit_detector.labels import FILE_PRECISIONS, PRETRAINED
from digit_detector.model_file import onnx_name
from digit_detector.selection import BEST_FIRST, FSDD_TEST_HASH
from ml_training.config import TrainConfig
from ml_training.data.fsdd import TREE_HASH
from ml_training.training.training_data import load_training_data


@pytest.mark.parametrize("precision", FILE_PRECISIONS)
def test_the_pretrained_models_were_tested_there_and_are_in_order(precision):
    found = [read_metadata(model_file(PRETRAINED, pipeline, precision)) for pipeline in BEST_FIRST]
    for metadata in found:
        assert (metadata["split"], metadata["speech"]) == ("official", "recordings")
        assert metadata["recordings_hash"].split()[0] == TREE_HASH
        assert metadata.get("test_hash", FSDD_TEST_HASH) == FSDD_TEST_HASH
    accuracies = [float(metadata["accuracy"]) for metadata in found]
    assert accuracies == sorted(accuracies, reverse=True)


@pytest.mark.real_data
@pytest.mark.parametrize("seed", [0, 1])
def test_the_hash_is_that_of_fsdds_official_test(seed, fsdd_dir):
    config = TrainConfig(dataset="fsdd", data_dir=str(fsdd_dir), synthetic_ratio=0.0, negative_ratio=0.0, seed=seed)
    assert load_training_data(config, None, lambda _: None, lambda _: None).test_hash == FSDD_TEST_HASH


def test_metadata_of_a_changed_model_is_refused(tmp_path):
    file = tmp_path / onnx_name("model", "fp32")
    content = model_file(PRETRAINED, BEST_FIRST[0]).read_bytes()
    file.write_bytes(content.replace(b"1.000000", b"0.900000", 1))
    with pytest.raises(ModelError, match="its checksum is not that of its export"):
        read_metadata(file)
