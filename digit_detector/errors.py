"""Every error this package raises on purpose.

A message says what came, what was expected and what to do. The command line prints it as one
line and leaves with `exit_code`; a traceback therefore always means a bug of ours.
"""

import signal
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], before: str = "") -> str:
    """What to add to an error about a mistyped word: ", did you mean `before`mfcc?", or nothing."""
    import difflib  # only where something was mistyped

    near = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {before}{near[0]}?" if near else ""


class DigitError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class ConfigError(DigitError):
    """Settings that cannot be meant: every fault is listed, not only the first."""

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
    """Audio that no digit can be heard in."""


class EmptyAudioError(AudioError):
    """No bytes or no samples."""


class UndecodableAudioError(AudioError):
    """Bytes that no decoder at hand reads as audio, or an array of the wrong shape or type."""


class TruncatedAudioError(AudioError):
    """A recording that ends before its header says so."""


class TooLongAudioError(AudioError):
    """A recording that is longer, or takes more to decode, than is allowed."""


class NonFiniteAudioError(AudioError):
    """Samples that are NaN, infinite, or thousands of times full scale."""


class SilentAudioError(AudioError):
    """Digital silence where a sound is needed, as in training data; asked which digit it is, the answer is none."""


class DataError(DigitError):
    """A data set that is missing, altered, unreadable or too damaged to train on."""


class DownloadError(DataError):
    """A download that was refused, cut off or altered."""


class TrainingError(DigitError):
    """Training that cannot go on."""


class PeerLostError(TrainingError):
    """Another of the processes that train together is gone or cannot be reached."""


class CheckpointError(TrainingError):
    """A checkpoint that is missing, damaged, foreign, or could not be written."""


class ExportError(DigitError):
    """An exported model that does not answer like the one it was made from."""


class ModelError(DigitError):
    """A model folder or file that is missing, damaged or not one of ours."""


class ModelMemoryError(ModelError):
    """A model that was asked more at once than memory holds."""


class BatchError(DigitError):
    """A folder's answers that cannot be begun, written or gone on with."""


class StreamError(DigitError):
    """A live stream that is not there, is there already, or is fed more than can wait."""


class MicrophoneError(DigitError):
    """A microphone that is not there, may not be used, or gives no sound."""


class ServiceError(DigitError):
    """A service on the network that does not answer, refuses, or answers what cannot be read."""


class ClusterError(DigitError):
    """A cluster that does not answer, or work that it gave up."""


class Interrupted(BaseException):
    """Work stopped because it was asked to; what was done until then is saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """What a shell expects: 130 after Ctrl-C, 143 after SIGTERM, 129 after a hang-up."""
        return 128 + self.signum
