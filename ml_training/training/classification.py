"""Training of a digit classifier on the shared trainer, and predictions with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from digit_detector.errors import TrainingError
from digit_detector.memory import halving
from ml_training.config import TrainConfig, to_dict
from ml_training.data.augmentation.noise import load_noise_bank
from ml_training.data.corpus import NOT_A_DIGIT
from ml_training.pipelines.base import DigitModel, ModelOutput, Pipeline
from ml_training.results import Floats
from ml_training.training.batches import Batch, BatchMaker, Clips, Rows, count_negatives
from ml_training.training.checkpoint import CheckpointStore, RunIdentity
from ml_training.training.distillation import EnsembleTeacher, teachers_hash
from ml_training.training.distributed import SingleProcess
from ml_training.training.losses import loss_fn, validation_loss
from ml_training.training.precomputed_features import fit_normalizer, with_features
from ml_training.training.seeding import choose_device, choose_precision, step_seed
from ml_training.training.task import Task
from ml_training.training.trainer import Callback, StopFlag, Trainer, TrainerOptions, Training

VALIDATION_BATCH = 256


class ClassificationTask(Task):
    """Digits in a new order in each epoch, with negatives; cross entropy, presence loss and distillation.

    Raises TrainingError for too few clips, and what EnsembleTeacher raises.
    """

    def __init__(
        self, model: nn.Module, train: Clips, validation: Clips, config: TrainConfig, group: SingleProcess
    ) -> None:
        if None in (config.epochs, config.batch_size, config.learning_rate, config.weight_decay):
            raise TypeError("train_model needs a resolved configuration: config.resolve(pipeline, recipe)")
        assert config.batch_size
        count, validated = (int((clips.labels != NOT_A_DIGIT).sum()) for clips in (train, validation))
        if count < 2 or not validated:
            raise TrainingError(
                f"training needs 2 clips of digits and validation 1 at least, got {count} and {validated}: "
                "use more recordings or another --validation_ratio"
            )
        least = 2 * group.world_size  # one clip per rank has no batch statistics
        if (most := min(count, config.batch_size)) < least:
            raise TrainingError(
                f"{group.world_size} processes need {least} digits in a batch, got {most}: "
                "use a larger --batch_size, more recordings or fewer processes"
            )
        self.device = choose_device(config)
        self.validation = with_features(model, validation, config, inference=True).to(self.device)
        train = with_features(model, train, config, inference=False).to(self.device)
        digit_model = model if isinstance(model, DigitModel) else None
        self.batches = BatchMaker.of(train, config.negative_ratio, config.full_augmentation, digit_model)
        self.teacher = EnsembleTeacher(config.teacher_dir, self.device) if config.teacher_dir is not None else None
        self.config, self.group, self.batch_size = config, group, config.batch_size
        whole, rest = divmod(count, self.batch_size)
        self.steps = whole + (rest >= least or not whole)  # the rest of an epoch is left out if it is too small
        self.validation_batch = min(VALIDATION_BATCH, len(validation))
        self.order = torch.empty(0, dtype=torch.int64)

    def start_epoch(self, epoch: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.order = torch.randperm(len(self.batches.digits), generator=generator).to(self.device)

    def _positions(self, step: int) -> Tensor:
        """Positions of this rank's digits in a step."""
        whole = self.order[step * self.batch_size : (step + 1) * self.batch_size]
        return whole[self.group.rank :: self.group.world_size]

    def batch(self, step: int) -> Batch:
        return self.batches.batch(self._positions(step))

    def clips(self, step: int) -> int:
        digits = len(self._positions(step))
        return digits + count_negatives(digits, self.config.negative_ratio)

    def split(self, batch: Batch, count: int) -> list[Batch]:
        return batch.split(count)

    def forward(self, network: nn.Module, batch: Batch) -> Any:
        return _forward(network, batch.inputs, batch.precomputed)

    def loss(self, outputs: ModelOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        taught = None if self.teacher is None else self.teacher.predict_proba(batch.inputs)
        loss = loss_fn(outputs, batch, self.config.label_smoothing, taught, self.config.distillation_weight)
        correct = (outputs.digit_logits[: len(batch.labels)].argmax(dim=1) == batch.labels).sum()
        return loss, torch.stack([correct, torch.full_like(correct, len(batch.labels))])

    def validate(self, model: nn.Module, batch_size: int) -> tuple[float, float]:
        labels = self.validation.labels
        outputs = predict_batches(model, self.validation.inputs, batch_size, self.validation.features is not None)
        is_digit = labels != NOT_A_DIGIT
        correct = outputs.digit_logits[is_digit].argmax(dim=1) == labels[is_digit]
        return validation_loss(outputs, labels, self.config.label_smoothing), float(correct.double().mean())


def train_model(
    model: nn.Module, train: Clips, validation: Clips, config: TrainConfig, *, store: CheckpointStore | None = None,
    callback: Callback | None = None, stop: StopFlag | None = None, group: SingleProcess | None = None,
) -> Training:  # fmt: skip
    """Train `model` in place as the resolved `config` says, resuming from `store` if config.resume is set.

    All ranks of a `group` call this with the same clips and settings; only rank 0 has a `store`. Raises what
    ClassificationTask and Trainer.run raise.
    """
    task = ClassificationTask(model, train, validation, config, group or SingleProcess())
    return Trainer(model, task, _options(config, task), store=store, callback=callback, stop=stop, group=group).run()


def _options(config: TrainConfig, task: ClassificationTask) -> TrainerOptions:
    assert config.epochs
    assert config.learning_rate is not None
    assert config.weight_decay is not None
    return TrainerOptions(
        config.epochs, task.steps, config.learning_rate, config.weight_decay, optimizer=config.optimizer,
        scheduler=config.scheduler, clip_norm=config.clip_norm, ema_decay=config.ema_decay, patience=config.patience,
        seed=config.seed, resume=config.resume, compile=config.compile, device=task.device,
        dtype=choose_precision(config, task.device),
    )  # fmt: skip


def build_model(pipeline: Pipeline, config: TrainConfig, train: Clips) -> DigitModel:
    """A new model of a pipeline; the seed decides its weights, the training clips its feature normalization."""
    torch.manual_seed(step_seed(config.seed, 0, 0))
    model = pipeline.model(config.width)
    model.set_augmentation(config.full_augmentation)
    fit_normalizer(model, train)
    return model


def run_identity(pipeline: str, config: TrainConfig, data_hash: str, synthetic: bool = False) -> RunIdentity:
    """The identity of a training with a resolved configuration."""
    augmentation = config.full_augmentation
    noise = load_noise_bank(augmentation.noise_dir) if augmentation.enabled and augmentation.noise_dir else None
    return RunIdentity(
        pipeline, to_dict(config), data_hash, synthetic,
        noise_hash=noise.data_hash if noise else "",
        teachers_hash=teachers_hash(config.teacher_dir) if config.teacher_dir is not None else "",
    )  # fmt: skip


def predict(model: nn.Module, waveforms: Rows) -> ModelOutput:
    """Outputs of a model for (N, 8000) clips, in float32, in evaluation mode; in smaller batches if memory is short."""

    def ignore(too_many: int, fewer: int) -> None:
        pass

    return halving(lambda size: predict_batches(model, waveforms, size), VALIDATION_BATCH, 1, ignore)[0]


def predict_batches(model: nn.Module, inputs: Rows, batch_size: int, precomputed: bool = False) -> ModelOutput:
    """As `predict` in batches of one size; `precomputed` inputs are features."""
    model.eval()
    with torch.no_grad():
        starts = range(0, max(1, len(inputs)), batch_size)
        parts = [_forward(model, inputs[start : start + batch_size], precomputed) for start in starts]
    return ModelOutput(*(torch.cat([outputs.float() for outputs in each]) for each in zip(*parts, strict=True)))


def _forward(network: nn.Module, inputs: Tensor, precomputed: bool) -> Any:
    # Networks without precomputed features, as those of tests and examples, take one argument.
    return network(inputs, precomputed=True) if precomputed else network(inputs)


def predict_probabilities(model: nn.Module, waveforms: Tensor) -> Floats:
    """(N, 8000) -> (N, 10) probabilities in float32, in evaluation mode."""
    probabilities: Floats = predict(model, waveforms).digit_logits.softmax(dim=1).cpu().numpy().astype(np.float32)
    return probabilities
