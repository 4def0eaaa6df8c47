"""Why a request is refused: a status, a code for programs, a sentence for people."""

from __future__ import annotations

from http import HTTPStatus

from digit_detector.errors import (
    AudioError,
    ConfigError,
    DigitError,
    MissingExtraError,
    ModelMemoryError,
    TooLongAudioError,
)


class RefusedError(DigitError):
    """A request that is not answered, by the client's fault or for lack of room."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def refusal(error: DigitError) -> RefusedError:
    """What a client is told of an error of ours."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, MissingExtraError):
        return RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "not_supported", str(error))
    if isinstance(error, TooLongAudioError):
        return RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_long", str(error))
    if isinstance(error, AudioError):
        return RefusedError(HTTPStatus.UNPROCESSABLE_ENTITY, "bad_audio", str(error))
    if isinstance(error, ConfigError):
        return RefusedError(HTTPStatus.UNPROCESSABLE_ENTITY, "bad_request", str(error))
    if isinstance(error, ModelMemoryError):
        return busy("there is not enough memory for this now")
    return RefusedError(
        HTTPStatus.INTERNAL_SERVER_ERROR, "failed", "this could not be answered; the server's log says more"
    )


def busy(why: str) -> RefusedError:
    return RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "busy", f"{why}: try again in a moment")


def body(code: str, message: str) -> dict[str, dict[str, str]]:
    """A fault as JSON."""
    return {"error": {"code": code, "message": message}}
