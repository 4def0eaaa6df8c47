"""Recordings decoded in threads ahead of the model, and predicted in batches that fit into memory."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np

from digit_detector.audio import Floats, load_audio
from digit_detector.classifier import DigitClassifier
from digit_detector.errors import DigitError
from digit_detector.memory import halving
from ml_training.predict.tables import Recording

BATCH_SIZE = 64  # more clips than this outgrow a processor's cache
STRETCH, STRETCHES = 8, 64  # files that a decoder takes at once; stretches ahead of the model, with 16 MB of clips

Report = Callable[[str], None]


def predict_recordings(
    recordings: Iterator[Recording], report: Report, *, model: DigitClassifier, batch_size: int | None, decoders: int
) -> Iterator[list[Recording]]:
    """Predict recordings in their order, a batch at a time; those with an error or a row stay as they are.

    Batches are halved for good where memory does not hold one. Raises ModelError.
    """
    size = batch_size or BATCH_SIZE

    def shrink(too_many: int, half: int) -> None:
        nonlocal size
        size = half
        report(f"not enough memory for {too_many} clips at once: going on with {half}")

    def predict(clips: list[Floats]) -> Iterator[tuple[Floats, float]]:
        done = 0

        def run(count: int) -> tuple[Floats, Floats]:
            return model.predict_proba(np.stack(clips[done : done + count]))

        while done < len(clips):
            (probabilities, scores), count = halving(run, min(size, len(clips) - done), 1, shrink)
            yield from zip(probabilities, scores.tolist(), strict=True)
            done += count

    with contextlib.closing(decode_ahead(recordings, decoders)) as decoded:
        while batch := list(islice(decoded, size)):
            answers = predict([one.clip for one in batch if one.clip is not None])
            yield [one if one.clip is None else Recording(one.name, None, *next(answers)) for one in batch]


def decode_ahead(recordings: Iterator[Recording], decoders: int) -> Generator[Recording]:
    """Decode recordings in order, by threads that are at most 512 clips ahead of the consumer."""
    pool = ThreadPoolExecutor(decoders, "decoder")
    waiting: deque[Future[list[Recording]]] = deque()
    try:
        while True:
            while len(waiting) < STRETCHES and (stretch := list(islice(recordings, STRETCH))):
                waiting.append(pool.submit(lambda stretch: list(map(decode, stretch)), stretch))
            if not waiting:
                return
            for recording in waiting.popleft().result():
                yield decode(recording, is_last_try=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def decode(recording: Recording, is_last_try: bool = False) -> Recording:
    """A recording with its clip or an error; without both where memory ran out, which other threads may give back."""
    name = recording.name
    if recording.clip is not None or recording.error is not None or recording.row is not None:
        return recording
    try:
        clip = load_audio(name)
        return Recording(name, clip if clip.base is None else clip.copy())  # a view keeps the whole recording
    except DigitError as error:
        return Recording(name, error=str(error))
    except MemoryError:
        return Recording(name, error=f"{name} takes more memory to decode than there is") if is_last_try else recording
    except Exception as error:  # one of a million files must not end the run
        reason = f"{type(error).__name__}: {error}"
        return Recording(name, error=f"{name} made the decoder fail ({reason}): please report it")
