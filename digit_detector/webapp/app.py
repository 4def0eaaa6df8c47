"""The FastAPI application: its routes, in the order of the documentation, and the services behind them."""

from __future__ import annotations

import asyncio
import json
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
from digit_detector.acoustic_file import BLOCK, FILE, TOKENS
from digit_detector.audio import ENCODINGS
from digit_detector.classifier import model_file
from digit_detector.cli.answers import LONG_SECONDS
from digit_detector.errors import ConfigError, DigitError
from digit_detector.labels import PRETRAINED, trained_pipelines
from digit_detector.processors import PROCESSORS, load_processors
from digit_detector.streaming.config import DetectorConfig
from digit_detector.streaming.engine import Engine
from digit_detector.webapp import schemas
from digit_detector.webapp.clients import Quota, client_address
from digit_detector.webapp.errors import RejectedError, as_rejection, error_body
from digit_detector.webapp.limits import ServerLimits
from digit_detector.webapp.metrics import Metrics
from digit_detector.webapp.middleware import RequestGuard
from digit_detector.webapp.sessions import Download, Sessions, wait_for_disconnect
from digit_detector.webapp.uploads import ALL, UploadProcessor, check_method
from digit_detector.webapp.websocket import WebSocketServer
from digit_detector.webapp.worker_pool import WorkerPool

_GONE = 499  # nginx's status for a client that disconnected
_STATIC = Path(__file__).with_name("static")
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": schemas.Problem, "description": "rejected: why, and what to do"},
    "5XX": {"model": schemas.Problem, "description": "busy, or an error of the server"},
}
_ABOUT = Path(__file__).with_name("api.md").read_text(encoding="utf-8")  # WebSocket protocol and error codes
_ENCODING = f"of sound without a header: one of {', '.join(ENCODINGS)}"
_Method = Annotated[str, InPath(description="one of `/processors`", examples=["ml_cnn"])]
_ModelName = Annotated[
    str, InPath(description="`acoustic.onnx`, or the model of a pipeline", examples=["mel_cnn.onnx"])
]
_SessionId = Annotated[str, InPath(description="`id` of `POST /sessions`")]
_log = logging.getLogger("digits.serve")
for kind, suffix in (("text/javascript", ".js"), ("text/javascript", ".mjs"), ("application/wasm", ".wasm")):
    mimetypes.add_type(kind, suffix)  # some systems map them to other types, which browsers refuse


def make_app(
    limits: ServerLimits | None = None,
    config: DetectorConfig | None = None,
    model: str | None = None,
    methods: Sequence[str] = tuple(PROCESSORS),
) -> FastAPI:
    """Load the models and return the application; `config` and `model` are as in StreamingDetector.

    Raises ConfigError, ModelError, MissingExtraError.
    """
    limits = limits or ServerLimits()
    config = Engine(config, model).config  # raises at once if the model cannot be used
    processors = load_processors(methods, limits.model_dir)
    files = _find_model_files(limits.model_dir, model)
    detector_json = json.dumps({"config": asdict(config), "tokens": TOKENS, "block": BLOCK})
    pool = WorkerPool(config, model, limits.streams, limits.backlog_seconds, limits.workers, limits.worker_seconds)
    sessions = Sessions(limits.sessions, limits.sessions_per_client, limits.session_seconds, limits.kept_bytes)
    uploads = UploadProcessor(processors, limits)
    downloads = Quota(limits.downloads_per_client)
    sockets = WebSocketServer(pool, sessions, limits)
    metrics = Metrics(pool, sockets, sessions, uploads, downloads)
    started = time.monotonic()

    @asynccontextmanager
    async def run_services(_: FastAPI) -> AsyncIterator[None]:
        try:
            await asyncio.gather(pool.start(), uploads.start())
            yield
        finally:
            await asyncio.gather(pool.stop(), uploads.stop())
            sessions.close_all()

    app = FastAPI(
        title="Streaming Digit Detector", version=digit_detector.__version__, description=_ABOUT, lifespan=run_services,
        docs_url=None, redoc_url=None, responses=_PROBLEMS,
    )  # fmt: skip

    @app.get(
        "/health", tags=["server"],
        responses={503: {"model": schemas.Health, "description": "no worker accepts a live stream"}},
    )  # fmt: skip
    async def health(response: Response) -> schemas.Health:
        """Whether the server and its workers run.

        Version, uptime, live streams, and how many of the worker processes, which run the networks on live streams,
        are alive. The status is `degraded` while one is being restarted.
        """
        alive = pool.workers_alive
        if not alive:
            response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
        return schemas.Health(
            status="ok" if alive == pool.workers else "degraded", version=digit_detector.__version__,
            uptime_seconds=time.monotonic() - started, streams=pool.streams, workers=pool.workers,
            workers_alive=alive,
        )  # fmt: skip

    @app.get("/processors", tags=["recordings"])
    def processor_list() -> schemas.ProcessorList:
        """All recognisers, and why some are unavailable; their names are the values of `method`."""
        return schemas.ProcessorList(processors=[_processor(name) for name in methods])

    @app.get("/processor_info/{method}", tags=["recordings"])
    def processor_info(method: _Method) -> schemas.ProcessorInfo:
        """One recogniser, and the metadata of its model.

        `about` has the metadata of the model file: pipeline, version, training data, accuracy.
        """
        check_method(method)
        about = processors[method].about if method in processors else {}
        return schemas.ProcessorInfo(**_processor(method).model_dump(), about=about)

    @app.post(
        "/process_audio", tags=["recordings"], response_model=schemas.Results,
        responses={422: {"model": schemas.Problem, "description": "not a recording, an empty file, or not a form"}},
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
        encoding: Annotated[str | None, Form(description=_ENCODING, examples=[None])] = None,
        rate: Annotated[int | None, Form(description="Hz, of sound without a header", examples=[None])] = None,
    ) -> schemas.Results | Response:
        """Recognise the digit in a recording.

        One result for one method, or one for each that is available. The format is detected from the bytes, not from
        the name; recognisers get one channel at 8 kHz. A recogniser that fails sets `error`, and the others still
        answer.
        """
        client = client_address(request.scope, limits.trusted_proxy)
        answering = asyncio.ensure_future(uploads.answer(file, method, client, encoding, rate))
        gone = asyncio.ensure_future(wait_for_disconnect(request.receive))
        try:
            await asyncio.wait((answering, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                return Response(status_code=_GONE)  # not delivered, but counted by the metrics
            seconds, answers = answering.result()
        finally:
            gone.cancel()
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
        note = "only the loudest second was classified: send the recording to /ws for every digit in it"
        return schemas.Results(
            seconds=seconds, note=note if seconds > LONG_SECONDS else None,
            results=[schemas.Result(method=name, digit=a.digit, **asdict(a)) for name, a in answers],
        )  # fmt: skip

    @app.get("/stats", tags=["recordings"])
    def stats() -> schemas.Stats:
        """Counts of all recognisers since the server started.

        And of live audio. Times are of the last thousand answers of each recogniser.
        """
        return schemas.Stats(
            processors={name: schemas.Counts(**asdict(each.statistics)) for name, each in processors.items()},
            live=schemas.LiveCounts(streams=pool.streams, digits=pool.digits, seconds=pool.seconds),
        )

    @app.get("/stats/{method}", tags=["recordings"])
    def stats_of(method: _Method) -> schemas.Counts:
        """Counts of one recogniser."""
        if method == ALL:
            raise RejectedError(HTTPStatus.NOT_FOUND, "no_method", "name one method; those of all are at /stats")
        return schemas.Counts(**asdict(uploads.select(method)[0].statistics))

    @app.post("/sessions", status_code=HTTPStatus.CREATED, tags=["sessions"])
    async def create_session(body: schemas.SessionRequest, request: Request) -> schemas.SessionInfo:
        """Create a session, which collects the digits of streams of `/ws?session=ID`.

        It keeps their audio only with `keep_audio`. Without a stream it is deleted after an hour.
        """
        return schemas.SessionInfo.model_validate(
            sessions.create(body.keep_audio, client_address(request.scope, limits.trusted_proxy))
        )

    @app.get("/sessions", tags=["sessions"])
    async def list_sessions() -> schemas.SessionList:
        """All open sessions."""
        return schemas.SessionList(sessions=[schemas.SessionInfo.model_validate(session) for session in sessions.all()])

    @app.get("/sessions/{session_id}", tags=["sessions"])
    async def session_info(session_id: _SessionId) -> schemas.SessionInfo:
        """One session.

        `digits` are those of all its streams, in order of time.
        """
        return schemas.SessionInfo.model_validate(sessions.find(session_id))

    @app.get(
        "/sessions/{session_id}/audio", tags=["sessions"], response_class=Response,
        responses={200: {"content": {"audio/wav": {}}}},
    )  # fmt: skip
    async def session_audio(
        request: Request,
        session_id: _SessionId,
        stream: Annotated[int, Query(description="number of the stream in the session, from 0")] = 0,
    ) -> Response:
        """The kept audio of one stream as a WAV file.

        The header `X-Truncated: true` means that there was no room for the rest.
        """
        kept = sessions.find(session_id).recordings
        if not 0 <= stream < len(kept):
            raise RejectedError(
                HTTPStatus.NOT_FOUND, "no_audio",
                f"no audio of stream {stream} was kept: expected one of the first {len(kept)}, "
                "and keep_audio when the session is created",
            )  # fmt: skip
        size, pieces = sessions.read_wav(kept[stream])
        headers = {"Cache-Control": "no-store"} | ({} if kept[stream].whole else {"X-Truncated": "true"})
        client = client_address(request.scope, limits.trusted_proxy)
        return Download(downloads, client, size, pieces, "audio/wav", headers)

    @app.delete("/sessions/{session_id}", status_code=HTTPStatus.NO_CONTENT, tags=["sessions"])
    async def close_session(session_id: _SessionId) -> None:
        """Delete a session and its kept audio."""
        sessions.close(session_id)

    @app.get("/metrics", tags=["server"], response_class=PlainTextResponse)
    def show_metrics() -> Response:
        """Metrics in the text format of Prometheus.

        WebSockets, streams, detected digits, seconds of audio, sessions, requests by route and status, answers and
        their times.
        """
        return Response(metrics.page(), media_type=CONTENT_TYPE_LATEST)

    @app.get(
        "/models/detector.json", tags=["models"], response_class=Response,
        responses={200: {"content": {"application/json": {}}}},
    )  # fmt: skip
    def detector() -> Response:
        """Configuration of the live detector.

        `config` has its thresholds and constants, `tokens` what the posteriors of its model stand for in their order,
        `block` the samples of a step.
        """
        return Response(detector_json, media_type="application/json")

    @app.get(
        "/models/{name}", tags=["models"], response_class=FileResponse,
        responses={200: {"content": {"application/octet-stream": {}}}},
    )  # fmt: skip
    def model_of(name: _ModelName) -> FileResponse:
        """A model as an ONNX file, for the browser.

        The file that the server itself uses.
        """
        if name not in files:
            expected = ", ".join(files)
            raise RejectedError(HTTPStatus.NOT_FOUND, "no_model", f"there is no such model: expected one of {expected}")
        return FileResponse(files[name], media_type="application/octet-stream")

    @app.get("/docs", include_in_schema=False)
    def documentation() -> FileResponse:
        return FileResponse(_STATIC / "api.html")

    @app.exception_handler(DigitError)
    async def fault(_: Request, error: DigitError) -> JSONResponse:
        refused = as_rejection(error)
        if refused.status >= HTTPStatus.INTERNAL_SERVER_ERROR and refused is not error:
            _log.error("%s: %s", type(error).__name__, error)
        return JSONResponse(error_body(refused.code, str(refused)), refused.status)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'][1:])) or e['loc'][0]}: {e['msg']}" for e in error.errors())
        return JSONResponse(error_body("bad_request", faults), HTTPStatus.UNPROCESSABLE_ENTITY)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        code, headers = HTTPStatus(error.status_code), dict(error.headers or {})
        if code is HTTPStatus.BAD_REQUEST:  # a form or a body that cannot be parsed
            return JSONResponse(error_body("bad_request", str(error.detail)), code)
        if methods := _list_methods(app, request):  # the static files, mounted last, only know GET
            code, headers["Allow"] = HTTPStatus.METHOD_NOT_ALLOWED, ", ".join(sorted(methods))
        return JSONResponse(error_body(code.name.lower(), f"{request.method}: {code.phrase}"), code, headers)

    def _processor(name: str) -> schemas.Processor:
        return schemas.Processor(
            name=name, title=PROCESSORS[name].title, available=name in processors,
            reason=uploads.reasons.get(name),
        )  # fmt: skip

    app.mount("/", StaticFiles(directory=_STATIC, html=True), name="page")
    app.add_middleware(RequestGuard, limits=limits, sockets=sockets, count=metrics.count)
    return app


def _find_model_files(model_dir: str, model: str | None) -> dict[str, Path]:
    """Model files that the browser-only mode fetches, by their name in the URL.

    Raises ConfigError for a folder without a classifier.
    """
    classifiers = {f"{name}.onnx": model_file(model_dir, name) for name in trained_pipelines(model_dir)}
    files = {name: file for name, file in classifiers.items() if file.is_file()}
    if not files:
        raise ConfigError([f"{model_dir} holds no classifier: train one, or name another folder"], "--model_dir")
    shipped = Path(digit_detector.__file__).with_name(PRETRAINED) / FILE
    return {**files, FILE: shipped if model is None else Path(model)}


def _list_methods(app: FastAPI, request: Request) -> set[str]:
    """HTTP methods of the routes that match the path of a request."""
    routes = (r for r in app.routes if isinstance(r, Route) and r.matches(request.scope)[0] is not Match.NONE)
    return {method for route in routes for method in route.methods or ()}
