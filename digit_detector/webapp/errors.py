"""Rejected requests: a status, a stable code, and a message."""

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


class RejectedError(DigitError):
    """A request that is not answered: it is invalid, or a limit is reached.

    `status` is an HTTP status, or from 1000 on a close code of a WebSocket.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def as_rejection(error: DigitError) -> RejectedError:
    """Map an error of the package to what a client may see."""
    if isinstance(error, RejectedError):
        return error
    if isinstance(error, MissingExtraError):
        return RejectedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "not_supported", str(error))
    if isinstance(error, TooLongAudioError):
        return RejectedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_long", str(error))
    if isinstance(error, AudioError):
        return RejectedError(HTTPStatus.UNPROCESSABLE_ENTITY, "bad_audio", str(error))
    if isinstance(error, ConfigError):
        return RejectedError(HTTPStatus.UNPROCESSABLE_ENTITY, "bad_request", str(error))
    if isinstance(error, ModelMemoryError):
        return make_busy_error("there is not enough memory for this now")
    return RejectedError(
        HTTPStatus.INTERNAL_SERVER_ERROR, "failed", "this could not be answered; the server's log says more"
    )


def make_busy_error(why: str) -> RejectedError:
    """For a limit that may have room again later."""
    return RejectedError(HTTPStatus.SERVICE_UNAVAILABLE, "busy", f"{why}: try again in a moment")


def error_body(code: str, message: str) -> dict[str, dict[str, str]]:
    """The JSON body of an error."""
    return {"error": {"code": code, "message": message}}
