"""What `digits evaluate` does: protocols on trained models or trainings; JSON, plots, a report, docs/results.md."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from digit_detector.errors import ConfigError, DataError
from digit_detector.files import unwritable
from digit_detector.labels import FP32, PRETRAINED
from ml_training.config import TrainConfig
from ml_training.data.corpus import Corpus
from ml_training.data.dataset_loader import load_corpus, load_folder
from ml_training.data.feature_cache import Cache, use_cache
from ml_training.evaluation.perturbations import load_recordings
from ml_training.evaluation.protocols import (
    CALIBRATION,
    CV,
    KEPT,
    LOSO,
    NOISE,
    OFFICIAL,
    PROTOCOLS,
    REJECTION,
    STRANGERS,
    TRAINED_BY_FOLDS,
    TestClips,
    TrainedModel,
    calibrated,
    load_models,
    noise,
    official,
    official_part,
    strangers,
)
from ml_training.evaluation.records import (
    PLOTS,
    file_name,
    load_result,
    load_results,
    log_scoring,
    save_result,
    update_docs,
)
from ml_training.evaluation.rejection import OWN_KINDS, load_others, rejection
from ml_training.evaluation.significance import comparable, compared, to_dicts
from ml_training.evaluation.version_metrics import record_with_versions
from ml_training.report.evaluation import write_evaluation_report
from ml_training.report.evaluation_plots import plot_result, slug
from ml_training.report.tables import plural, provenance, tables_of, title_of
from ml_training.results import ProtocolResult

if TYPE_CHECKING:
    from ml_training.pipelines.base import Pipeline

REPORT = "evaluation_report.html"
SCORE_FOLDERS = (STRANGERS, NOISE, CALIBRATION, REJECTION)
Report = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What is to be evaluated, and where it goes."""

    protocols: tuple[str, ...]
    config: TrainConfig  # which recordings and pipelines; for loso how to train
    pipeline: str | None = None  # of the models there; None is the config's
    models_dirs: tuple[str, ...] = ("models",)
    precision: str = FP32  # of their files
    model_version: int | None = None  # of the models there; None is the promoted one
    folders: tuple[str, ...] = ()  # of labelled clips; without one the official test part is scored
    noise_dir: str | None = None
    others: tuple[tuple[str, str], ...] = ()  # for rejection: kind of clips without a digit, their folder
    noise_seed: int = 0
    seeds: tuple[int, ...] = (0, 1, 2)
    speakers: tuple[str, ...] = ()
    folds: int = 10  # of cv
    jobs: int | None = None  # processes that train folds; None for as many as suit the machine
    fold_models: str = KEPT  # what becomes of their models, of protocols.MODELS
    models_wanted: bool = False  # folds whose models were thrown away earlier are trained anew
    compare: str | None = None  # JSON file of an earlier result of cv or loso
    output: str = "evaluation_results"
    log_scoring: str | None = None
    update_docs: str | None = None

    def __post_init__(self) -> None:
        faults = []
        unknown = [name for name in self.protocols if name not in PROTOCOLS]
        if unknown:
            faults.append(f"protocol: expected some of {', '.join(PROTOCOLS)}, got {', '.join(unknown)}")
        if not self.protocols and not self.update_docs:
            faults.append(f"protocol: name one of {', '.join(PROTOCOLS)} at least, or update_docs")
        if STRANGERS in self.protocols and not self.folders:
            faults.append("folder: protocol 'strangers' needs a folder of labelled clips")
        if REJECTION in self.protocols and not self.others:
            faults.append("others: protocol 'rejection' needs a folder of clips without a digit, as words=FOLDER")
        kinds = [kind for kind, _ in self.others]
        if len({*kinds, *OWN_KINDS}) < len(kinds) + len(OWN_KINDS):
            faults.append(f"others: each kind needs a name of its own, none of {', '.join(OWN_KINDS)}")
        if self.others and REJECTION not in self.protocols:
            faults.append(f"others: only protocol {REJECTION!r} hears them: name it")
        if self.folders and not set(SCORE_FOLDERS) & set(self.protocols):
            faults.append(f"folder: only {', '.join(SCORE_FOLDERS)} score folders: name one of these")
        if self.noise_dir and NOISE not in self.protocols:
            faults.append(f"noise_dir: only protocol {NOISE!r} mixes noise in: name it")
        if self.model_version is not None and set(self.protocols) <= set(TRAINED_BY_FOLDS):
            faults.append(f"version: protocol {self.protocols[0]!r} trains its own models: name another protocol")
        if self.compare and not set(self.protocols) & set(TRAINED_BY_FOLDS):
            faults.append(f"compare: only {' and '.join(TRAINED_BY_FOLDS)} are compared fold by fold: name one")
        if self.jobs is not None and self.jobs < 1:
            faults.append(f"jobs: expected a number of processes from 1 on, got {self.jobs}")
        if self.speakers and LOSO not in self.protocols:
            faults.append(f"speakers: only protocol {LOSO!r} leaves speakers out: name it")
        if self.log_scoring and not self.folders:
            faults.append("log_scoring: it logs looks at a folder, and none is named")
        faults += [f"seeds: expected whole numbers from 0 on, got {seed}" for seed in self.seeds if seed < 0]
        if not 0 <= self.noise_seed < 2**31:
            faults.append(f"noise_seed: expected a whole number from 0 to {2**31 - 1}, got {self.noise_seed}")
        report = Path(self.output, REPORT)
        faults += unwritable({"output": report, "log_scoring": self.log_scoring, "update_docs": self.update_docs})
        if self.config.split != "official" or self.config.resume is not None:
            faults.append("split, held_out_speaker, fold, resume: the protocol decides these, leave them out")
        if faults:
            raise ConfigError(faults)


@dataclass(frozen=True)
class Outcome:
    """What an evaluation led to."""

    results: tuple[ProtocolResult, ...]
    files: tuple[Path, ...]
    report: Path


def evaluate(
    request: Request,
    report: Report = lambda line: None,
    *,
    corpus: Corpus | None = None,
    pipelines: Sequence[Pipeline] | None = None,
) -> Outcome:
    """Run the protocols of a request, write what they found, then the report of all results in the output folder.

    `corpus` takes the place of the recordings that the request's config names, `pipelines` that of the registry's
    for loso. Raises the errors of the protocols; what was found before one is written.
    """
    with use_cache(Cache(report=report) if request.config.cache else None):
        return _evaluate(request, report, corpus, pipelines)


def _evaluate(request: Request, report: Report, corpus: Corpus | None, pipelines: Sequence[Pipeline] | None) -> Outcome:
    output = Path(request.output)
    earlier = load_result(Path(request.compare)) if request.compare else None
    if earlier is not None and earlier.protocol not in set(request.protocols) & set(TRAINED_BY_FOLDS):
        raise DataError(
            f"{request.compare} is of protocol {earlier.protocol!r}, "
            f"expected {' or '.join(name for name in TRAINED_BY_FOLDS if name in request.protocols)}"
        )
    found: list[ProtocolResult] = []
    files: list[Path] = []
    for result in _results(request, report, corpus, pipelines, earlier):
        if earlier is not None and result.protocol == earlier.protocol:
            pairs = to_dicts(compared(result, earlier))
            against = {"with": request.compare, "created": earlier.created, "pairs": pairs}
            result = replace(result, details={**(result.details or {}), "compared": against})
        found.append(result)
        if request.log_scoring and result.protocol not in (OFFICIAL, *TRAINED_BY_FOLDS):
            log_scoring(Path(request.log_scoring), result)
        files.append(save_result(result, output, report))
        record_with_versions(result, [f for f in request.models_dirs if f != PRETRAINED], report)
    page = output / REPORT
    everything = load_results(output, report)
    plots = output / PLOTS
    if everything:
        write_evaluation_report([(r, plot_result(r, plots, file_name(r))) for r in everything], page)
    if request.update_docs:
        log = Path(request.log_scoring) if request.log_scoring else None
        count = update_docs(output, Path(request.update_docs), log)
        report(f"{request.update_docs}: {plural(count, 'result')}")
    return Outcome(tuple(found), tuple(files), page)


def _results(
    request: Request,
    report: Report,
    corpus: Corpus | None,
    pipelines: Sequence[Pipeline] | None,
    earlier: ProtocolResult | None,
) -> Iterator[ProtocolResult]:
    """What each protocol finds on each set of clips, one after another."""
    config, asked = request.config, [name for name in PROTOCOLS if name in request.protocols]
    trained = [name for name in asked if name not in TRAINED_BY_FOLDS]
    models = _models(request, report) if trained else []
    noises = load_recordings(request.noise_dir) if request.noise_dir else None
    others = [load_others(kind, folder) for kind, folder in request.others]
    if noises:
        _tell_left_out(f"{request.noise_dir} ({NOISE})", noises.skipped, report)
    folders = [
        TestClips(load_folder(folder, name), official=False)
        for folder, name in _told_apart(_each_once(request.folders)).items()
    ]
    if corpus is None and (CV in asked or LOSO in asked or OFFICIAL in asked or (trained and not folders)):
        corpus = load_corpus(config, report=report)
    for scored in [*(clips.corpus for clips in folders), *([corpus] if corpus else [])]:
        _tell_left_out(scored.name, [f"{clip.file}: {clip.reason}" for clip in scored.skipped], report)
    for name in asked:
        if name in TRAINED_BY_FOLDS:
            assert corpus is not None
            yield _by_folds(name, request, corpus, pipelines, earlier, report)
            continue
        if name == OFFICIAL or not folders:
            assert corpus is not None
            parts = [official_part(corpus)]
        else:
            parts = folders
        for clips in parts:
            report(f"{name}: {clips.description}")
            if name == OFFICIAL:
                yield official(models, clips)
            elif name == STRANGERS:
                yield strangers(models, clips)
            elif name == REJECTION:
                yield rejection(models, clips, others, request.noise_seed)
            elif name == NOISE:
                yield noise(models, clips, request.noise_seed, noises, report)
            else:
                yield calibrated(models, clips)


def _by_folds(
    name: str,
    request: Request,
    corpus: Corpus,
    pipelines: Sequence[Pipeline] | None,
    earlier: ProtocolResult | None,
    report: Report,
) -> ProtocolResult:
    """What the trainings of cv or loso find."""
    # These need torch; protocols of models that are there do without.
    from ml_training.evaluation.cross_validation import Plan, cross_validate, planned_folds
    from ml_training.registry import get_pipeline

    config = request.config
    chosen = [get_pipeline(p) for p in config.pipelines] if pipelines is None else pipelines
    speakers = request.speakers if name == LOSO else ()
    folds = request.folds if name == CV else None
    plan = Plan(folds, speakers, request.seeds, request.jobs, request.fold_models, request.models_wanted)
    if earlier is not None and name == earlier.protocol:
        planned: dict[str, set[tuple[int, str]]] = {}
        for fold in planned_folds(corpus, chosen, config, plan):
            planned.setdefault(fold.pipeline.name, set()).add((fold.config.seed, fold.left_out))
        comparable(name, corpus.name, corpus.data_hash, planned, earlier)
    return cross_validate(corpus, chosen, config, Path(config.log_dir) / name, plan, report)


def _models(request: Request, report: Report) -> list[TrainedModel]:
    folders = _models_once(request.models_dirs)
    pipeline = request.pipeline or request.config.pipeline
    return load_models(folders, pipeline, report, request.precision, request.model_version)


def _tell_left_out(where: str, files: Sequence[str], report: Report) -> None:
    if files:
        report(f"{where}: {plural(len(files), 'file')} left out, first {files[0]}")


def _each_once(folders: Sequence[str]) -> list[str]:
    """Folders without those that are one of the others once more: nothing counts twice."""
    places: dict[str, str] = {}
    for folder in folders:
        places.setdefault(os.path.realpath(os.path.expanduser(folder)), folder)
    return list(places.values())


def _models_once(folders: Sequence[str]) -> list[str]:
    """The same of folders of models, where one word is none."""
    shipped = [PRETRAINED] if PRETRAINED in folders else []
    return sorted([*_each_once([f for f in folders if f != PRETRAINED]), *shipped], key=folders.index)


def _told_apart(folders: Sequence[str]) -> dict[str, str | None]:
    """Folders with the name of their results: None for their own, more of the path where two are called alike."""
    parts = {folder: Path(folder).expanduser().resolve().parts for folder in folders}
    names: dict[str, str | None] = {}
    for folder, own in parts.items():
        others = [path for path in parts.values() if path != own]
        ends = (depth for depth in range(1, len(own)) if not any(_end(p, depth) == _end(own, depth) for p in others))
        depth = next(ends, len(own))
        names[folder] = None if depth == 1 else "/".join(own[-depth:])
    return names


def _end(parts: Sequence[str], depth: int) -> str:
    """The last parts of a path as they become part of a file's name."""
    return slug("/".join(parts[-depth:]))


def summary(outcome: Outcome) -> str:
    """The tables of what was found, and where the rest lies."""
    lines: list[str] = []
    for result, file in zip(outcome.results, outcome.files, strict=True):
        lines += ["", title_of(result), result.definition]
        lines += [f"\n{table.text()}" for table in tables_of(result)]
        lines += ["", f"{provenance(result)}", f"written: {file}"]
    return "\n".join([*lines, f"report: {outcome.report}"])
