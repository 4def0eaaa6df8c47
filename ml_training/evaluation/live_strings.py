"""Protocol `strings`: the live detector on digit strings and on speech without digits, as a ProtocolResult."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import ml_training
from digit_detector.audio import Floats
from digit_detector.evaluation.perturbations import CLEAN, Perturbation
from digit_detector.evaluation.speech import SpeechSet, evaluate_speech
from digit_detector.evaluation.strings import Detect, StringSet, evaluate_strings
from digit_detector.files import sha256_of
from digit_detector.model_file import git_commit
from ml_training.report.table import plural
from ml_training.results import STRINGS, ProtocolResult

Report = Callable[[str], None]


def score_strings(
    strings: Sequence[StringSet], speech: Sequence[SpeechSet], detect: Detect, context: str = "digits",
    live_model: str | None = None, perturbations: Sequence[Perturbation] = (), noises: Sequence[Floats] = (),
    seed: int = 0, report: Report = lambda line: None,
) -> ProtocolResult:  # fmt: skip
    """Digit errors and false alarms under every perturbation, the unchanged recordings first. Raises DataError."""
    conditions = list(dict.fromkeys((CLEAN, *perturbations)))

    def announce(each: StringSet | SpeechSet, condition: Perturbation) -> None:
        report(f"{STRINGS}: {each.name}, {condition.name}: {plural(len(each.clips), 'recording')}")

    string_results, speech_results = [], []
    for string_set in strings:
        for condition in conditions:
            announce(string_set, condition)
            string_results.append(evaluate_strings(string_set, detect, condition, noises, seed))
    for speech_set in speech:
        for condition in conditions:
            announce(speech_set, condition)
            speech_results.append(evaluate_speech(speech_set, detect, condition, noises, seed))
    files = [clip.path for string_set in strings for clip in string_set.clips]
    files += [clip.path for speech_set in speech for clip in speech_set.clips]
    names = [string_set.name for string_set in strings] or [speech_set.name for speech_set in speech]
    speakers = {clip.speaker for each in strings for clip in each.clips}
    others = f" and false alarms in {', '.join(each.name for each in speech)}" if speech else ""
    return ProtocolResult(
        protocol=STRINGS,
        definition=f"The live detector, context {context!r}: digits of strings by edit distance{others}",
        data=", ".join(names),
        data_hash=hash_files(files), synthetic=False, clips=len(files), speakers=len(speakers), seeds=(),
        version=ml_training.__version__, git_commit=git_commit(),
        created=datetime.now(UTC).isoformat(timespec="seconds"), strings=tuple(string_results),
        speech=tuple(speech_results),
        details={
            "context": context, "noise_seed": seed, "live_model": live_model,
            "live_model_sha256": sha256_of(Path(live_model)) if live_model else None,
            "without_digits": {each.name: each.without_digits for each in strings},
            "figures": [*(r.figures() for r in string_results), *(r.figures() for r in speech_results)],
        },
    )  # fmt: skip


def hash_files(files: Sequence[Path]) -> str:
    """SHA-256 over the hashes of some files, sorted."""
    digest = hashlib.sha256()
    for line in sorted(sha256_of(path) for path in files):
        digest.update(line.encode())
    return digest.hexdigest()
