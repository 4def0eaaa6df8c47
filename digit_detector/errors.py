"""The exceptions of this package.

A message says what came, what was expected and what to do. The command line prints it as one line and exits with
`exit_code`; a traceback therefore always means a bug.
"""

import signal
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], before: str = "") -> str:
    """A suggestion to append to an error about a misspelt word: ", did you mean `before`mfcc?", or ""."""
    import difflib  # rarely needed

    near = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {before}{near[0]}?" if near else ""


class DigitError(Exception):
    """Base of all exceptions of this package."""

    exit_code = 1


class ConfigError(DigitError):
    """Invalid settings: every fault is listed, not only the first."""

    exit_code = 2

    def __init__(self, faults: list[str], source: str = "settings") -> None:
        self.faults = faults
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__(f"{count} in {source}: " + "; ".join(faults))


class MissingExtraError(DigitError):
    """A feature whose optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} needs the [{extra}] extra, which is not installed: "
            f'run pip install "streaming-digit-detector[{extra}]" (in a checkout: pip install -e ".[{extra}]")'
        )


class AudioError(DigitError):
    """Audio that cannot be used."""


class EmptyAudioError(AudioError):
    """No bytes or no samples."""


class UndecodableAudioError(AudioError):
    """Bytes that no available decoder reads, or an array of the wrong shape or type."""


class TruncatedAudioError(AudioError):
    """A recording that ends before its header says."""


class TooLongAudioError(AudioError):
    """A recording that is longer, or takes more to decode, than is allowed."""


class NonFiniteAudioError(AudioError):
    """Samples that are NaN, infinite, or thousands of times full scale."""


class SilentAudioError(AudioError):
    """Digital silence where sound is needed, as in training data."""


class DataError(DigitError):
    """A data set that is missing, altered, unreadable or too damaged to train on."""


class DownloadError(DataError):
    """A download that was refused, cut off or altered."""


class TrainingError(DigitError):
    """Training that cannot continue."""


class PeerLostError(TrainingError):
    """Another process of a distributed training has ended or cannot be reached."""


class CheckpointError(TrainingError):
    """A checkpoint that is missing, damaged, of another model, or could not be written."""


class ExportError(DigitError):
    """An exported model whose outputs differ from those of the original."""


class ModelError(DigitError):
    """A model folder or file that is missing, damaged or not of this package."""


class ModelMemoryError(ModelError):
    """An input too large for the available memory."""


class BatchError(DigitError):
    """Predictions of a folder that cannot be started, written or resumed."""


class StreamError(DigitError):
    """A live stream that does not exist, exists already, or is fed faster than it is processed."""


class MicrophoneError(DigitError):
    """A microphone that does not exist, may not be used, or is silent."""


class ServiceError(DigitError):
    """A network service that does not answer, refuses, or answers something unreadable."""


class ClusterError(DigitError):
    """A cluster that does not answer, or failed work."""


class Interrupted(BaseException):
    """Work was stopped by a signal; finished work is saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """What a shell expects: 130 after Ctrl-C, 143 after SIGTERM, 129 after a hang-up."""
        return 128 + self.signum
