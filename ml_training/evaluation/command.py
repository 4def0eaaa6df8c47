"""`digits evaluate`: protocols on trained models or trainings; JSON files, plots, a report, docs/results.md."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path

from digit_detector.errors import ConfigError, DataError
from digit_detector.evaluation.perturbations import Perturbation
from digit_detector.evaluation.speech import load_speech
from digit_detector.evaluation.streams import load_sounds
from digit_detector.evaluation.strings import live_detect, load_strings
from digit_detector.files import unwritable
from digit_detector.labels import FP32, PRETRAINED
from ml_training.config import TrainConfig
from ml_training.data.corpus import Corpus
from ml_training.data.dataset_loader import load_corpus, load_folder
from ml_training.data.feature_cache import Cache, use_cache
from ml_training.evaluation import protocols
from ml_training.evaluation.live_strings import score_strings
from ml_training.evaluation.perturbations import load_recordings
from ml_training.evaluation.protocols import CALIBRATION, LOSO, NOISE, OFFICIAL, REJECTION
from ml_training.evaluation.records import PLOTS, load_files, load_result, log_scoring, save_result, update_docs
from ml_training.evaluation.significance import compare_folds, match_pipelines
from ml_training.evaluation.version_metrics import record_with_versions
from ml_training.report.evaluation import write_evaluation_report
from ml_training.report.evaluation_plots import plot_result, slug
from ml_training.report.table import plural
from ml_training.report.tables import provenance, tables_of, title_of
from ml_training.results import STRINGS, UNSEEN_SPEAKERS, ProtocolResult

REPORT = "evaluation_report.html"
FOLDER_PROTOCOLS = (UNSEEN_SPEAKERS, NOISE, CALIBRATION, REJECTION)

Report = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What is evaluated, and where the results go. Raises ConfigError with every fault."""

    protocols: tuple[str, ...]
    config: TrainConfig  # recordings and pipelines; for cv and loso the training
    pipeline: str | None = None  # of trained models; None: the config's
    models_dirs: tuple[str, ...] = ("models",)
    precision: str = FP32
    model_version: int | None = None  # None: the promoted version
    folders: tuple[str, ...] = ()  # of labelled clips; without one the official test part is scored
    noise_dir: str | None = None
    others: tuple[tuple[str, str], ...] = ()  # kind and folder of non-digit clips, for rejection
    strings: tuple[str, ...] = ()  # folders and tables of digit strings, for the live detector
    where: tuple[tuple[str, str], ...] = ()  # column and value of the rows of these tables
    speech: tuple[tuple[str, str], ...] = ()  # name and folder or table of speech without digit strings
    speech_where: tuple[tuple[str, str], ...] = ()
    perturb: tuple[Perturbation, ...] = ()  # of the recordings of strings and speech
    context: str = "digits"  # of the live detector
    live_model: str | None = None  # of the live detector; None: the bundled one
    noise_seed: int = 0
    seeds: tuple[int, ...] = (0, 1, 2)
    speakers: tuple[str, ...] = ()  # that loso leaves out; empty: each
    folds: int = 10  # of cv
    jobs: int | None = None  # processes that train folds; None: as many as cores and memory allow
    keep_models: bool = True  # of folds
    retrain_thrown: bool = False  # folds whose models were thrown away
    compare: str | None = None  # JSON of an earlier result of cv or loso
    output: str = "evaluation_results"
    log_scoring: str | None = None
    update_docs: str | None = None

    def __post_init__(self) -> None:
        chosen, trained = set(self.protocols), set(self.protocols) & set(protocols.TRAINED_BY_FOLDS)
        kinds, names = [kind for kind, _ in self.others], ", ".join(protocols.PROTOCOLS)
        duplicates = len({*kinds, *protocols.GENERATED_KINDS}) < len(kinds) + len(protocols.GENERATED_KINDS)
        outputs = {
            "output": Path(self.output, REPORT), "log_scoring": self.log_scoring, "update_docs": self.update_docs
        }  # fmt: skip
        checks = {
            f"protocol: expected some of {names}, got {', '.join(self.protocols)}": chosen - set(protocols.PROTOCOLS),
            f"protocol: name one of {names} at least, or update_docs": not chosen and not self.update_docs,
            f"folder: protocol {UNSEEN_SPEAKERS!r} needs a folder of labelled clips":
                UNSEEN_SPEAKERS in chosen and not self.folders,
            "others: protocol 'rejection' needs a folder of clips without a digit, as words=FOLDER":
                REJECTION in chosen and not self.others,
            f"others: each kind needs a name of its own, none of {', '.join(protocols.GENERATED_KINDS)}": duplicates,
            f"others: only protocol {REJECTION!r} uses them: name it": self.others and REJECTION not in chosen,
            f"folder: only {', '.join(FOLDER_PROTOCOLS)} score folders: name one of these":
                self.folders and not chosen & set(FOLDER_PROTOCOLS),
            f"noise_dir: only protocol {NOISE!r} mixes noise in, and {STRINGS!r} for snr: name one":
                self.noise_dir and not chosen & {NOISE, STRINGS},
            f"strings: protocol {STRINGS!r} needs --strings or --speech, folders or tables of recordings":
                STRINGS in chosen and not self.strings and not self.speech,
            f"strings, speech, perturb, live_model: only protocol {STRINGS!r} uses them: name it":
                (self.strings or self.speech or self.perturb or self.live_model) and STRINGS not in chosen,
            "where: it selects rows of the tables of --strings, and none is named": self.where and not self.strings,
            "speech_where: it selects rows of the tables of --speech, and none is named":
                self.speech_where and not self.speech,
            "perturb: snr needs --noise_dir, a folder of background recordings":
                any(p.kind == "snr" for p in self.perturb) and not self.noise_dir,
            f"version: {' and '.join(protocols.TRAINED_BY_FOLDS)} train their own models: name another protocol":
                self.model_version is not None and trained == chosen,
            f"compare: only {' and '.join(protocols.TRAINED_BY_FOLDS)} are compared fold by fold: name one":
                self.compare and not trained,
            f"jobs: expected a number of processes from 1 on, got {self.jobs}":
                self.jobs is not None and self.jobs < 1,
            f"speakers: only protocol {LOSO!r} leaves speakers out: name it": self.speakers and LOSO not in chosen,
            "log_scoring: it logs scorings of a folder, and none is named": self.log_scoring and not self.folders,
            f"seeds: expected whole numbers from 0 on, got {min(self.seeds, default=0)}":
                min(self.seeds, default=0) < 0,
            f"noise_seed: expected a whole number from 0 to {2**31 - 1}, got {self.noise_seed}":
                not 0 <= self.noise_seed < 2**31,
            "split, held_out_speaker, fold, resume: the protocol decides these, leave them out":
                self.config.split != "official" or self.config.resume is not None,
        }  # fmt: skip
        if faults := [fault for fault, found in checks.items() if found] + unwritable(outputs):
            raise ConfigError(faults)


@dataclass(frozen=True)
class Outcome:
    """The results of an evaluation and their files."""

    results: tuple[ProtocolResult, ...]
    files: tuple[Path, ...]
    report: Path


def evaluate(request: Request, report: Report = lambda line: None) -> Outcome:
    """Run the protocols of a request, write each result, then the report of all results in the output folder.

    Raises the errors of the protocols; results before one are written.
    """
    output = Path(request.output)
    page, log = output / REPORT, Path(request.log_scoring) if request.log_scoring else None
    earlier = load_result(Path(request.compare)) if request.compare else None
    if earlier is not None and earlier.protocol not in set(request.protocols) & set(protocols.TRAINED_BY_FOLDS):
        expected = " or ".join(name for name in protocols.TRAINED_BY_FOLDS if name in request.protocols)
        raise DataError(f"{request.compare} is of protocol {earlier.protocol!r}, expected {expected}")
    results, files = [], []
    with use_cache(Cache() if request.config.cache else None):
        for result in _run_protocols(request, earlier, report):
            if earlier is not None and result.protocol == earlier.protocol:
                pairs = [asdict(pair) for pair in compare_folds(result, earlier)]
                against = {"with": request.compare, "created": earlier.created, "pairs": pairs}
                result = replace(result, details={**(result.details or {}), "compared": against})
            results.append(result)
            if log is not None and result.protocol not in (OFFICIAL, STRINGS, *protocols.TRAINED_BY_FOLDS):
                log_scoring(log, result)
            files.append(save_result(result, output, report))
            record_with_versions(result, [f for f in request.models_dirs if f != PRETRAINED], report)
    if existing := load_files(output, report):
        plots = output / PLOTS
        write_evaluation_report([(r, plot_result(r, plots, path.stem)) for path, r in existing.items()], page)
    if request.update_docs:
        written = update_docs(output, Path(request.update_docs), log)
        report(f"{request.update_docs}: {plural(written, 'result')}")
    return Outcome(tuple(results), tuple(files), page)


def _run_protocols(request: Request, earlier: ProtocolResult | None, report: Report) -> Iterator[ProtocolResult]:
    """The result of each protocol on each set of clips."""
    config, chosen = request.config, [name for name in protocols.PROTOCOLS if name in request.protocols]
    scoring = [name for name in chosen if name not in (STRINGS, *protocols.TRAINED_BY_FOLDS)]
    models = []
    if scoring:
        folders = _unique(request.models_dirs)
        pipeline = request.pipeline or config.pipeline
        models = protocols.load_models(folders, pipeline, report, request.precision, request.model_version)
    noises = load_recordings(request.noise_dir) if request.noise_dir and NOISE in chosen else None
    if noises:
        _report_skipped(f"{request.noise_dir} ({NOISE})", noises.skipped, report)
    non_digits = [protocols.load_non_digits(kind, folder) for kind, folder in request.others]
    names = _name_folders(_unique(request.folders))
    sets = [protocols.TestClips(load_folder(folder, name), official=False) for folder, name in names.items()]
    corpora = [clips.corpus for clips in sets]
    if OFFICIAL in chosen or set(chosen) & set(protocols.TRAINED_BY_FOLDS) or (scoring and not sets):
        corpora.append(load_corpus(config, report=report))
    for corpus in corpora:
        _report_skipped(corpus.name, [f"{clip.file}: {clip.reason}" for clip in corpus.skipped], report)
    for name in chosen:
        if name in protocols.TRAINED_BY_FOLDS:
            yield _cross_validate(name, request, corpora[-1], earlier, report)
            continue
        if name == STRINGS:
            yield _score_strings(request, report)
            continue
        for clips in sets if sets and name != OFFICIAL else [protocols.official_part(corpora[-1])]:
            report(f"{name}: {clips.description}")
            if name == NOISE:
                yield protocols.score_noise(models, clips, request.noise_seed, noises, report)
            elif name == REJECTION:
                yield protocols.score_rejection(models, clips, non_digits, request.noise_seed)
            elif name == CALIBRATION:
                yield protocols.score_calibration(models, clips)
            else:
                yield (protocols.score_official if name == OFFICIAL else protocols.score_unseen_speakers)(models, clips)


def _score_strings(request: Request, report: Report) -> ProtocolResult:
    where, speech_where = dict(request.where), dict(request.speech_where)
    return score_strings(
        [load_strings(place, where) for place in _unique(request.strings)],
        [load_speech(name, place, speech_where) for name, place in request.speech],
        live_detect(request.live_model, request.context), request.context, request.live_model, request.perturb,
        load_sounds(Path(request.noise_dir).expanduser()) if request.noise_dir else (), request.noise_seed, report,
    )  # fmt: skip


def _cross_validate(
    name: str, request: Request, corpus: Corpus, earlier: ProtocolResult | None, report: Report
) -> ProtocolResult:
    # These need torch, which the other protocols do without.
    from ml_training.evaluation.cross_validation import Plan, cross_validate, plan_folds
    from ml_training.registry import get_pipeline

    config = request.config
    pipelines = [get_pipeline(p) for p in config.pipelines]
    speakers, folds = (request.speakers, None) if name == LOSO else ((), request.folds)
    plan = Plan(folds, speakers, request.seeds, request.jobs, request.keep_models, request.retrain_thrown)
    if earlier is not None and name == earlier.protocol:
        planned: dict[str, set[tuple[int, str]]] = {}
        for fold in plan_folds(corpus, pipelines, config, plan):
            planned.setdefault(fold.pipeline.name, set()).add((fold.config.seed, fold.left_out))
        match_pipelines(name, corpus.name, corpus.data_hash, planned, earlier)
    return cross_validate(corpus, pipelines, config, Path(config.log_dir) / name, plan, report)


def _report_skipped(source: str, files: Sequence[str], report: Report) -> None:
    if files:
        report(f"{source}: {plural(len(files), 'file')} left out, first {files[0]}")


def _unique(folders: Sequence[str]) -> list[str]:
    """Folders without those that are the same place as an earlier one."""
    places: dict[str, str] = {}
    for folder in folders:
        path = folder if folder == PRETRAINED else os.path.realpath(os.path.expanduser(folder))
        places.setdefault(path, folder)
    return list(places.values())


def _name_folders(folders: Sequence[str]) -> dict[str, str | None]:
    """Folder -> name of its results: None for its own, or enough of its path to differ from folders of that name."""
    paths = {folder: Path(folder).expanduser().resolve().parts for folder in folders}
    names: dict[str, str | None] = {}
    for folder, own in paths.items():
        others = [path for path in paths.values() if path != own]
        depth = next(
            n
            for n in count(1)
            if n >= len(own) or all(slug("/".join(p[-n:])) != slug("/".join(own[-n:])) for p in others)
        )
        names[folder] = None if depth == 1 else "/".join(own[-depth:])
    return names


def summary(outcome: Outcome) -> str:
    """The tables of every result, and the files written."""
    lines: list[str] = []
    for result, file in zip(outcome.results, outcome.files, strict=True):
        lines += ["", title_of(result), result.definition]
        lines += [f"\n{table.text()}" for table in tables_of(result)]
        lines += ["", f"{provenance(result)}", f"written: {file}"]
    return "\n".join([*lines, f"report: {outcome.report}"])
