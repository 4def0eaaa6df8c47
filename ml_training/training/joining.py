"""The processes that torchrun starts: how they meet, who tells what became of them, and what all but the first do."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import signal
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from ml_training.config import TrainConfig, to_dict
from ml_training.data.cache import Cache, caching
from ml_training.data.corpus import Corpus
from ml_training.errors import ConfigError, DigitError, Interrupted, PeerLostError
from ml_training.pipelines import get_pipeline
from ml_training.pipelines.base import Pipeline
from ml_training.training.checkpoint import FREE_SETTINGS
from ml_training.training.material import Material, load_material
from ml_training.training.ready import build_model
from ml_training.training.setup import choose_device, choose_precision, cpu_threads
from ml_training.training.team import Team, Together
from ml_training.training.trainer import train_model
from ml_training.utils.launched import Place, launched, one_voice
from ml_training.utils.signals import StopSignals

_PATIENCE = timedelta(hours=1)  # the first may load recordings, or test and export a model, while the others wait
_LEAVING = timedelta(seconds=10)  # a process that is gone while others still write makes torchrun end them


@contextlib.contextmanager
def joined(config: TrainConfig, resume_command: str) -> Iterator[Team]:
    """The team that this process belongs to, be it of itself alone.

    Where something ends all processes, one of them raises it and the others leave without a word.
    Raises ConfigError for settings that several processes cannot have, PeerLostError where they do not meet.
    """
    place = launched()
    if place is None:
        yield Team()
        return
    with one_voice():
        if config.compile:
            raise ConfigError([f"compile is for one process, not {place.world}: leave --compile out, or torchrun"])
        device = choose_device(config)
        choose_precision(config, device)
        try:
            store, team = _meet(device, place)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise PeerLostError(
                f"the {place.world} processes did not meet ({reason}): start torchrun again, "
                "on every machine with the same rendezvous"
            ) from error
    try:
        yield team
    except (Interrupted, KeyboardInterrupt):
        _leave_together(store, place)
        raise
    except Exception as error:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends who is left: not before it was told why
        if not _is_first_to_tell(store):
            raise SystemExit(error.exit_code if isinstance(error, DigitError) else 1) from None
        if isinstance(error, PeerLostError):
            error.args = (
                f"process {place.rank} of {place.world} lost another one ({error}), so all end here; "
                f"to go on from the last checkpoint: {resume_command}",
            )
        elif place.rank:
            error.args = (f"process {place.rank} of {place.world}: {error}",)
        raise
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def _meet(device: torch.device, place: Place) -> tuple[Any, Together]:
    backend = "gloo"
    if device.type == "cuda":
        cards = torch.cuda.device_count()
        device = torch.device("cuda", place.local_rank % cards)
        torch.cuda.set_device(device)
        if place.local_world <= cards:  # NCCL wants a card for each
            backend = "cpu:gloo,cuda:nccl"
    if dist.is_initialized():  # by Ray Train
        return dist.distributed_c10d._get_default_store(), Together(device, place.local_rank)
    kept, rank, world = next(rendezvous("env://", timeout=_PATIENCE))
    # torchrun keeps it when it starts all again, and where processes that are gone could be reached stands in it.
    store = dist.PrefixStore(f"digits/{place.restarts}", kept)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=_PATIENCE)
    return store, Together(device, place.local_rank, place.machines == 1)


def _is_first_to_tell(store: Any) -> bool:
    try:
        return bool(store.add("digits told", 1) == 1)
    except RuntimeError:  # it ended with the process that kept it: better twice than not at all
        return True


def _leave_together(store: Any, place: Place) -> None:
    """Let the first process say that all were stopped before anybody is gone."""
    with contextlib.suppress(RuntimeError):
        if place.rank == 0:
            store.set("digits stopped", "1")
        else:
            store.wait(["digits stopped"], _LEAVING)


def see_that_all_agree(team: Team, material: Material) -> None:
    """Raise DataError where processes have other recordings or other settings that change the weights."""
    config = dataclasses.replace(material.config, resume=None)
    deciding = {name: value for name, value in to_dict(config).items() if name not in FREE_SETTINGS}
    told = json.dumps([material.corpus.data_hash, deciding], sort_keys=True)
    team.agree("recordings or settings", hashlib.sha256(told.encode()).digest())


def follow(
    config: TrainConfig, team: Team, corpus: Corpus | None = None, pipelines: Sequence[Pipeline] | None = None
) -> None:
    """What every process but the first does of `runner.run`: its part of each training, and no more.

    It writes nothing and says nothing. Raises what loading and training raise.
    """
    chosen = [get_pipeline(name) for name in config.pipelines] if pipelines is None else list(pipelines)
    kept = Cache() if config.cache else None
    with cpu_threads(config.threads), StopSignals(unit=None) as signals, caching(kept):
        with team.in_turn():
            material = load_material(config, corpus, _unheard, _unheard)
        see_that_all_agree(team, material)
        for pipeline in chosen:
            own = material.config.resolved(pipeline.name, pipeline.recipe)
            train = material.part(material.split.train, seldom=not own.augmenting.enabled)
            model = build_model(pipeline, own, train)
            validation = material.part(material.split.validation)
            with signals.deferred():
                train_model(model, train, validation, own, stop=signals, team=team)


def _unheard(_: str) -> None:
    pass
