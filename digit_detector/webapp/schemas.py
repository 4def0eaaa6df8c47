"""Request and response bodies of the HTTP API (pydantic models)."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool

Confidence = Annotated[float | None, Field(description="0 to 1; null for methods without one", examples=[0.98])]


class Fault(BaseModel):
    code: str = Field(examples=["too_large"])
    message: str = Field(description="what came, what was expected, what to do")


class Problem(BaseModel):
    error: Fault


class Processor(BaseModel):
    name: str = Field(examples=["ml_cnn"])
    title: str = Field(examples=["log-mel and a 2D CNN"])
    available: bool
    reason: str | None = Field(description="why it is unavailable", examples=[None])


class ProcessorList(BaseModel):
    processors: list[Processor]


class ProcessorInfo(Processor):
    about: dict[str, str] = Field(description="metadata of its model")


class Result(BaseModel):
    method: str = Field(examples=["ml_cnn"])
    text: str = Field(description='the digit, or "" for none', examples=["7"])
    digit: int | None = Field(examples=[7])
    confidence: Confidence
    milliseconds: float = Field(examples=[0.6])
    error: str | None = Field(description="why there is no answer", examples=[None])


class Results(BaseModel):
    seconds: float = Field(description="length of the recording", examples=[0.61])
    note: str | None = Field(default=None, description="what the results leave out", examples=[None])
    results: list[Result]


class Counts(BaseModel):
    """Calls since the server started; times in ms, of the last thousand."""

    calls: int
    errors: int
    nothing: int = Field(description="calls without a digit")
    digits: list[int] = Field(description="answers by digit, 0 to 9", min_length=10, max_length=10)
    mean_ms: float
    p50_ms: float
    p95_ms: float


class LiveCounts(BaseModel):
    streams: int = Field(description="open now")
    digits: int = Field(description="detected since the server started")
    seconds: float = Field(description="of audio received since the server started")


class Stats(BaseModel):
    processors: dict[str, Counts]
    live: LiveCounts


class Health(BaseModel):
    status: Literal["ok", "degraded"]
    version: str
    uptime_seconds: float
    streams: int
    workers: int = Field(description="configured worker processes for live streams", examples=[2])
    workers_alive: int = Field(description="workers that accept a stream now", examples=[2])


class SessionRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keep_audio: StrictBool = Field(
        default=False, description="keep the audio of its streams until the session is closed"
    )


class SessionInfo(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: str
    created: datetime
    keep_audio: bool
    streams: int = Field(description="number of its streams so far")
    seconds: float = Field(description="of audio received")
    digits: str = Field(description="detected digits", examples=["473"])


class SessionList(BaseModel):
    sessions: list[SessionInfo]
