"""The application: routes, in the order in which they are documented, and what lives as long as it."""

from __future__ import annotations

import asyncio
import logging
import mimetypes
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, Query, Request, Response, UploadFile
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

import digit_detector
from digit_detector.cli.answers import LONG_SECONDS
from digit_detector.errors import DigitError
from digit_detector.processors import PROCESSORS, Answer, AudioProcessor, load_processors
from digit_detector.streaming.config import DetectorConfig
from digit_detector.streaming.engine import Engine
from digit_detector.webapp import answers
from digit_detector.webapp.clients import client_of
from digit_detector.webapp.downloads import Download, Downloads, until_gone
from digit_detector.webapp.faults import RefusedError, body, refusal
from digit_detector.webapp.guarding import Guard
from digit_detector.webapp.hearing import Hearing
from digit_detector.webapp.metrics import Metrics
from digit_detector.webapp.models import ModelFiles
from digit_detector.webapp.recordings import ALL, Recordings, check_name
from digit_detector.webapp.sessions import Session, Sessions
from digit_detector.webapp.settings import Settings
from digit_detector.webapp.socket import Sockets

_GONE = 499  # nginx's number for a client that hung up
_STATIC = Path(__file__).with_name("static")
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": answers.Problem, "description": "refused: why, and what to do"},
    "5XX": {"model": answers.Problem, "description": "busy, or a fault of the server"},
}
_ABOUT = """Spoken digits, zero to nine, in recordings and in live sound.

Live sound goes through the WebSocket `/ws`: send `{"type":"start","sample_rate":48000}`, then 16-bit samples of one
channel (little-endian) in binary messages of 20 to 100 ms each, then `{"type":"stop"}`. For each digit there comes a
`{"type":"digit", ...}`."""
_Method = Annotated[str, InPath(description="one of `/processors`", examples=["ml_cnn"])]
_ModelName = Annotated[
    str, InPath(description="`silero_vad.onnx`, `spotter.onnx`, or that of a pipeline", examples=["mel_cnn.onnx"])
]
_SessionId = Annotated[str, InPath(description="what `POST /sessions` gave")]
_log = logging.getLogger("digits.serve")
for kind, suffix in (("text/javascript", ".js"), ("text/javascript", ".mjs"), ("application/wasm", ".wasm")):
    mimetypes.add_type(kind, suffix)  # some systems say otherwise, and browsers insist


def make_app(
    settings: Settings | None = None,
    thresholds: DetectorConfig | None = None,
    pipelines: Sequence[str] | None = None,
    methods: Sequence[str] = tuple(PROCESSORS),
    spotter: str | None = None,
) -> FastAPI:
    """The application with its models loaded; `pipelines` and `spotter` are those of StreamingDetector.

    Raises ConfigError, ModelError, MissingExtraError.
    """
    settings = settings or Settings()
    engine = Engine(settings.model_dir, pipelines, thresholds, spotter)  # what cannot be used is said at once
    pipelines, thresholds = engine.pipelines, engine.config
    processors = load_processors(methods, settings.model_dir)
    files = ModelFiles(settings.model_dir, pipelines, thresholds, spotter)
    hearing = Hearing(
        settings.model_dir, pipelines, thresholds, settings.streams, settings.backlog_seconds, settings.workers,
        settings.worker_seconds, spotter,
    )  # fmt: skip
    sessions = Sessions(settings.sessions, settings.session_seconds, settings.kept_bytes)
    recordings = Recordings(processors, settings)
    downloads = Downloads(settings.downloads_per_client)
    session_clients: dict[str, str] = {}  # which client made each session
    sockets = Sockets(hearing, sessions, settings)
    metrics = Metrics(hearing, sockets, sessions, recordings, downloads)
    began = time.monotonic()

    @asynccontextmanager
    async def living(_: FastAPI) -> AsyncIterator[None]:
        try:
            await asyncio.gather(hearing.start(), recordings.start())
            yield
        finally:
            await asyncio.gather(hearing.stop(), recordings.stop())
            sessions.close_all()

    app = FastAPI(
        title="Streaming Digit Detector", version=digit_detector.__version__, description=_ABOUT, lifespan=living,
        docs_url=None, redoc_url=None, responses=_PROBLEMS,
    )  # fmt: skip

    @app.get(
        "/health", tags=["server"],
        responses={503: {"model": answers.Health, "description": "no worker can take a live stream"}},
    )  # fmt: skip
    async def health(response: Response) -> answers.Health:
        """Whether the server answers, and live sound too.

        With its version, how long it has run, its live streams, and how many of its workers, the processes that run
        the networks on them, are alive. It is degraded while one of these is being restarted.
        """
        alive = hearing.workers_alive
        if not alive:
            response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
        return answers.Health(
            status="ok" if alive == hearing.workers else "degraded", version=digit_detector.__version__,
            uptime_seconds=time.monotonic() - began, streams=hearing.streams, workers=hearing.workers,
            workers_alive=alive,
        )  # fmt: skip

    @app.get("/processors", tags=["recordings"])
    def processor_list() -> answers.ProcessorList:
        """The recognisers, and of those that cannot run here why.

        Their names are what `method` takes elsewhere.
        """
        return answers.ProcessorList(processors=[_processor(name) for name in methods])

    @app.get("/processor_info/{method}", tags=["recordings"])
    def processor_info(method: _Method) -> answers.ProcessorInfo:
        """One recogniser, and what its model says of itself.

        `about` holds what the model's file tells: pipeline, version, what it was trained on, accuracy.
        """
        check_name(method)
        found = processors.get(method)
        return answers.ProcessorInfo(**_processor(method).model_dump(), about=found.about if found else {})

    @app.post(
        "/process_audio", tags=["recordings"], response_model=answers.Results,
        responses={422: {"model": answers.Problem, "description": "no recording, an empty file too, or not in a form"}},
    )  # fmt: skip
    async def process_audio(
        request: Request,
        file: Annotated[
            UploadFile,
            File(
                description="a recording of one word: wav, mp3, flac, ogg, webm, ...; an empty file is refused",
                json_schema_extra={"minLength": 1},
            ),
        ],
        method: Annotated[str, Form(description="one of /processors, or all", examples=["ml_cnn"])] = ALL,
    ) -> answers.Results | Response:
        """Which digit is said in a recording.

        One result for one method, or one for each that can run here. The format is told by the bytes, not by the
        name; all are given one channel at 8 kHz. A recogniser that fails says so in `error`, and the others answer
        all the same.
        """
        answering = asyncio.ensure_future(
            recordings.answer(file, method, client_of(request.scope, settings.trusted_proxy))
        )
        gone = asyncio.ensure_future(until_gone(request.receive))
        try:
            await asyncio.wait((answering, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                return Response(status_code=_GONE)  # nobody reads it; it is counted
            seconds, said = answering.result()
        finally:
            gone.cancel()
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
        is_long = seconds > LONG_SECONDS
        note = "only the loudest second was looked at: send it to /ws for every digit in it" if is_long else None
        return answers.Results(seconds=seconds, note=note, results=[_result(name, answer) for name, answer in said])

    @app.get("/stats", tags=["recordings"])
    def stats() -> answers.Stats:
        """How all recognisers did since the server began.

        And how much live sound was heard. Times are of the last thousand answers of each.
        """
        return answers.Stats(
            processors={name: _counts(processor) for name, processor in processors.items()},
            live=answers.LiveCounts(streams=hearing.streams, digits=hearing.digits, seconds=hearing.seconds),
        )

    @app.get("/stats/{method}", tags=["recordings"])
    def stats_of(method: _Method) -> answers.Counts:
        """How one of them did."""
        if method == ALL:
            raise RefusedError(HTTPStatus.NOT_FOUND, "no_method", "name one method; those of all are at /stats")
        return _counts(recordings.chosen(method)[0])

    @app.post("/sessions", status_code=HTTPStatus.CREATED, tags=["sessions"])
    async def create_session(asked: answers.SessionRequest, request: Request) -> answers.SessionInfo:
        """Make a session, which gathers what is said in streams of `/ws?session=ID`.

        It keeps their sound only if it is asked to. Without a stream it is forgotten after an hour.
        """
        client, most = client_of(request.scope, settings.trusted_proxy), settings.sessions_per_client
        for gone in session_clients.keys() - {session.id for session in sessions.all()}:
            del session_clients[gone]
        if sum(other == client for other in session_clients.values()) >= most:
            raise RefusedError(
                HTTPStatus.TOO_MANY_REQUESTS, "too_many",
                f"{most} sessions of your address are open, as many as one client may have: close one",
            )  # fmt: skip
        session = sessions.create(asked.keep_audio)
        session_clients[session.id] = client
        return _session(session)

    @app.get("/sessions", tags=["sessions"])
    async def list_sessions() -> answers.SessionList:
        """The sessions that are open."""
        return answers.SessionList(sessions=[_session(session) for session in sessions.all()])

    @app.get("/sessions/{session_id}", tags=["sessions"])
    async def session_info(session_id: _SessionId) -> answers.SessionInfo:
        """What was said in one of them.

        `digits` are those of all its streams, in the order in which they were said.
        """
        return _session(sessions.find(session_id))

    @app.get(
        "/sessions/{session_id}/audio", tags=["sessions"], response_class=Response,
        responses={200: {"content": {"audio/wav": {}}}},
    )  # fmt: skip
    async def session_audio(
        request: Request,
        session_id: _SessionId,
        stream: Annotated[int, Query(description="which of its streams, the first is 0")] = 0,
    ) -> Response:
        """The sound of one of its streams as a WAV file, where it was kept.

        The header `X-Truncated: true` says that there was no room for the rest.
        """
        session = sessions.find(session_id)
        kept = session.recordings
        if not 0 <= stream < len(kept):
            raise RefusedError(
                HTTPStatus.NOT_FOUND,
                "no_audio",
                f"no sound of stream {stream} was kept: expected one of the {len(kept)} first, "
                "and keep_audio when the session is made",
            )
        size, pieces = sessions.read_wav(session, kept[stream])
        whole = {} if kept[stream].whole else {"X-Truncated": "true"}
        headers = {"Cache-Control": "no-store", **whole}
        return Download(downloads, client_of(request.scope, settings.trusted_proxy), size, pieces, "audio/wav", headers)

    @app.delete("/sessions/{session_id}", status_code=HTTPStatus.NO_CONTENT, tags=["sessions"])
    async def close_session(session_id: _SessionId) -> None:
        """Forget a session, and any sound it kept."""
        sessions.close(session_id)

    @app.get("/metrics", tags=["server"], response_class=PlainTextResponse)
    def show_metrics() -> Response:
        """How the server does, for Prometheus.

        Sockets, streams, digits and seconds heard, sessions, requests by route and status, answers and their times.
        """
        return Response(metrics.page(), media_type=CONTENT_TYPE_LATEST)

    @app.get(
        "/models/detector.json", tags=["models"], response_class=Response,
        responses={200: {"content": {"application/json": {}}}},
    )  # fmt: skip
    def detector() -> Response:
        """What the live detector must be sure of, which pipelines confirm a word, and what the spotter remembers.

        `earlier` are frames that it must be fed with each block: convolution, and how many frames before the block.
        """
        return Response(files.decisions, media_type="application/json")

    @app.get(
        "/models/{name}", tags=["models"], response_class=FileResponse,
        responses={200: {"content": {"application/octet-stream": {}}}},
    )  # fmt: skip
    def model(name: _ModelName) -> FileResponse:
        """An ONNX file, for answering in the browser.

        The very file that the server answers with.
        """
        if name not in files.files:
            expected = ", ".join(files.files)
            raise RefusedError(HTTPStatus.NOT_FOUND, "no_model", f"there is no such model: expected one of {expected}")
        return FileResponse(files.files[name], media_type="application/octet-stream")

    @app.get("/docs", include_in_schema=False)
    def documentation() -> FileResponse:
        return FileResponse(_STATIC / "api.html")

    @app.exception_handler(DigitError)
    async def fault(_: Request, error: DigitError) -> JSONResponse:
        refused = refusal(error)
        if refused.status >= HTTPStatus.INTERNAL_SERVER_ERROR and refused is not error:
            _log.error("%s: %s", type(error).__name__, error)
        return JSONResponse(body(refused.code, str(refused)), refused.status)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'][1:])) or e['loc'][0]}: {e['msg']}" for e in error.errors())
        return JSONResponse(body("bad_request", faults), HTTPStatus.UNPROCESSABLE_ENTITY)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        code, headers = HTTPStatus(error.status_code), dict(error.headers or {})
        if code is HTTPStatus.BAD_REQUEST:  # a form or a body that cannot be read
            return JSONResponse(body("bad_request", str(error.detail)), code)
        if methods := _methods(app, request):  # the page's files, which come last, know nothing of other methods
            code, headers["Allow"] = HTTPStatus.METHOD_NOT_ALLOWED, ", ".join(sorted(methods))
        return JSONResponse(body(code.name.lower(), f"{request.method}: {code.phrase}"), code, headers)

    def _processor(name: str) -> answers.Processor:
        return answers.Processor(
            name=name, title=PROCESSORS[name].title, available=name in processors,
            reason=recordings.reasons.get(name),
        )  # fmt: skip

    app.mount("/", StaticFiles(directory=_STATIC, html=True), name="page")
    app.add_middleware(Guard, settings=settings, sockets=sockets, count=metrics.count)
    return app


def _methods(app: FastAPI, request: Request) -> set[str]:
    """By which the path of a request may be asked for, where a route has it."""
    routes = (route for route in app.routes if isinstance(route, Route))
    return {
        method
        for route in routes
        if route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    }


def _result(name: str, answer: Answer) -> answers.Result:
    return answers.Result(
        method=name, text=answer.text, digit=answer.digit, confidence=answer.confidence,
        milliseconds=answer.milliseconds, error=answer.error,
    )  # fmt: skip


def _counts(processor: AudioProcessor) -> answers.Counts:
    return answers.Counts(**asdict(processor.statistics))


def _session(session: Session) -> answers.SessionInfo:
    return answers.SessionInfo(
        id=session.id, created=session.created, keep_audio=session.keep_audio, streams=session.streams,
        seconds=session.seconds, digits="".join(str(detection.digit) for detection in session.detections),
    )  # fmt: skip
