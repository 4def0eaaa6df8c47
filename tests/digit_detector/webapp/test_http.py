"""The HTTP interface, from the outside."""

import ast
import contextlib
import dataclasses
import io
import json
import re
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
import numpy as np
import pytest
import schemathesis
import soundfile
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

import digit_detector
from digit_detector.acoustic_file import FILE, TOKENS
from digit_detector.classifier import model_file
from digit_detector.labels import PRETRAINED
from digit_detector.streaming.config import load_config
from digit_detector.webapp.app import make_app
from digit_detector.webapp.limits import ServerLimits
from ml_training.data.tts import VOICES, synthesize_words

WEBAPP = Path(__file__).resolve().parents[3] / "digit_detector" / "webapp"


@pytest.fixture(scope="module")
def seven() -> np.ndarray:
    (samples,) = synthesize_words([(VOICES[1], "seven")], seed=3)
    return samples


UPLOAD = (
    "POST /process_audio HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n"
    "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
)


def dial(address: str, client: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(address.removeprefix("http://").split(":"), timeout=10, source_address=(client, 0))


def recording(samples: np.ndarray, kind: str = "WAV", rate: int = 8000, **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, **options)
    return file.getvalue()


def fault(response: httpx.Response) -> tuple[int, str]:
    body = response.json()["error"]
    assert body["message"]
    assert "Traceback" not in body["message"]
    return response.status_code, body["code"]


def test_a_recording_is_classified_by_all_methods_or_one(server, seven):
    wav = recording(seven)
    body = httpx.post(f"{server}/process_audio", files={"file": wav}).json()
    assert body["seconds"] == pytest.approx(len(seven) / 8000)
    assert body["note"] is None
    assert {r["method"] for r in body["results"]} >= {"ml_mfcc", "ml_cnn", "ml_raw", "ensemble"}
    one = httpx.post(f"{server}/process_audio", files={"file": wav}, data={"method": "ml_cnn"}).json()["results"]
    assert [(r["method"], r["digit"], r["text"]) for r in one] == [("ml_cnn", 7, "7")]
    assert 0.5 < one[0]["confidence"] <= 1.0
    assert one[0]["milliseconds"] > 0
    long = {"file": recording(np.concatenate([seven, np.zeros(16_000)]))}
    assert "second" in httpx.post(f"{server}/process_audio", files=long, data={"method": "ml_cnn"}).json()["note"]
    raw = {"file": recording(seven, "RAW", subtype="ULAW")}
    for form, expected in (({"encoding": "mulaw", "rate": "8000"}, 200), ({"encoding": "mp5"}, 422), ({}, 422)):
        answer = httpx.post(f"{server}/process_audio", files=raw, data={"method": "ml_cnn", **form})
        assert answer.status_code == expected, answer.text
        assert expected != 200 or answer.json()["results"][0]["digit"] == 7


def test_calls_and_requests_are_counted(serving, seven):
    with serving() as address:
        httpx.post(f"{address}/process_audio", files={"file": recording(seven)}, data={"method": "ml_raw"})
        counts = httpx.get(f"{address}/stats/ml_raw").json()
        assert (counts["calls"], sum(counts["digits"]) + counts["nothing"]) == (1, 1)
        assert httpx.get(f"{address}/stats").json()["processors"]["ml_raw"] == counts
        httpx.get(f"{address}/health", headers={"Host": "evil.example"})
        metrics = httpx.get(f"{address}/metrics").text
        assert 'digits_requests_total{route="other",status="421"} 1.0' in metrics
        assert 'digits_requests_total{route="/process_audio",status="200"} 1.0' in metrics


def test_unavailable_processors_have_a_reason(server):
    processors = {p["name"]: p for p in httpx.get(f"{server}/processors").json()["processors"]}
    assert processors["ml_cnn"]["available"]
    assert not processors["external_api"]["available"]
    assert "DIGIT_API_URL" in processors["external_api"]["reason"]
    assert httpx.get(f"{server}/processor_info/ml_cnn").json()["about"]["pipeline"] == "mel_cnn"
    assert fault(httpx.get(f"{server}/processor_info/ml_cnm")) == (404, "no_method")
    refused = httpx.post(f"{server}/process_audio", files={"file": b"x"}, data={"method": "external_api"})
    assert fault(refused) == (409, "not_available")
    assert httpx.get(f"{server}/health").json()["status"] == "ok"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "bad_audio"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt ", "bad_audio"),
        (b"\x00" * 5000, "bad_audio"),
        (recording(np.zeros(8000)), None),
        (recording(np.zeros((100, 12))), "bad_audio"),
        (recording(np.full(8000, np.nan, dtype=np.float32), subtype="FLOAT"), "bad_audio"),
        (recording(np.ones(9))[:24] + (2_000_000_000).to_bytes(4, "little") + recording(np.ones(9))[28:], "bad_audio"),
        (recording(np.zeros(61 * 8000)), "too_long"),
        (recording(np.zeros(4_000_000), "FLAC"), "too_long"),  # eight minutes in a few kilobytes
    ],
)  # fmt: skip
def test_invalid_recordings_are_rejected(server, content, code):
    response = httpx.post(f"{server}/process_audio", files={"file": content}, data={"method": "ml_cnn"})
    if code is None:  # silence is a recording without a digit
        (result,) = response.json()["results"]
        assert (result["text"], result["digit"], result["error"]) == ("", None, None)
    else:
        assert fault(response)[1] == code


def test_bodies_are_limited_with_and_without_a_length(serving):
    with serving(ServerLimits(port=0, upload_bytes=100_000)) as address:
        response = httpx.post(f"{address}/process_audio", files={"file": b"x" * 200_000})
        assert fault(response) == (413, "too_large")

        def endless():
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
            for _ in range(1000):
                yield b"x" * 1000

        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        with contextlib.suppress(httpx.WriteError, httpx.ReadError):  # it may hang up while more is being sent
            untold = httpx.post(f"{address}/process_audio", content=endless(), headers=kind)
            assert fault(untold) == (413, "too_large")
        assert httpx.get(f"{address}/health").status_code == 200


def test_requests_that_never_end_time_out(serving):
    with serving(ServerLimits(port=0, request_seconds=0.5)) as address, dial(address) as link:
        link.sendall(UPLOAD.format(host=address.removeprefix("http://"), length=1000).encode())
        assert b" 408 " in link.recv(10_000).split(b"\r\n")[0]


@pytest.mark.parametrize("before", [0, 1])
def test_slow_heads_time_out(serving, before):
    with serving(ServerLimits(port=0, head_seconds=1)) as address, dial(address) as link:
        link.sendall(f"GET /health HTTP/1.1\r\nHost: {address.removeprefix('http://')}\r\n\r\n".encode() * before)
        with contextlib.suppress(ConnectionError):
            for _ in range(300):  # a minute
                link.send(b"G")
                time.sleep(0.2)
            pytest.fail("the connection stays open")


def test_only_own_host_names_and_origins_are_allowed(serving, server):
    for host in ("evil.example", "", "[:::::]", "[", "a b", "127.0.0.1:1:1"):
        assert fault(httpx.get(f"{server}/health", headers={"Host": host})) == (421, "wrong_host")
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://[", "http://[:::::]", "", "//"):
        refused = httpx.post(f"{server}/sessions", json={}, headers={"Origin": origin})
        assert fault(refused) == (403, "wrong_origin")
    own = httpx.post(f"{server}/sessions", json={}, headers={"Origin": server})
    assert own.status_code == 201
    assert httpx.delete(f"{server}/sessions/{own.json()['id']}").status_code == 204
    origin = "https://digits.example"
    with serving(ServerLimits(port=0, allow_host=("digits.example",), allow_origin=(origin,))) as address:
        assert httpx.get(f"{address}/health", headers={"Host": "digits.example"}).status_code == 200
        allowed = httpx.post(f"{address}/sessions", json={}, headers={"Origin": origin})
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (201, origin)
        refused = httpx.post(f"{address}/sessions", json={}, headers={"Origin": f"{origin}:444"})
        assert fault(refused) == (403, "wrong_origin")
        assert "access-control-allow-origin" not in refused.headers


FORM = {"Content-Type": "multipart/form-data; boundary=b"}
PART = b'--b\r\nContent-Disposition: form-data; name="file"'


@pytest.mark.parametrize(
    "request_options",
    [
        {}, {"content": b""}, {"content": b"", "headers": FORM}, {"content": b"--b--\r\n", "headers": FORM},
        {"content": b"--b\r\n\xff: \r\n\r\nx", "headers": FORM},
        {"content": PART + b"\r\n\r\n\r\n--b--", "headers": FORM},
        {"content": b"{}", "headers": {"Content-Type": "multipart/form-data"}},
        {"content": b"x", "headers": {"Content-Type": "text/plain"}},
        {"files": {"file": b""}}, {"files": {"file": ("", b"")}}, {"data": {"file": ""}},
    ],
)  # fmt: skip
def test_invalid_forms_are_rejected(server, request_options):
    refused = httpx.post(f"{server}/process_audio", **request_options)
    assert refused.status_code in (400, 422)
    assert fault(refused)[1] in ("bad_request", "bad_audio")


def check_security_headers(headers: Mapping[str, str]) -> None:
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "unsafe-inline" not in headers["content-security-policy"]
    assert (headers["x-content-type-options"], headers["x-frame-options"].lower()) == ("nosniff", "deny")
    assert "server" not in headers


@pytest.mark.parametrize("path", ["/", "/health", "/nowhere", "/models/mfcc.onnx"])
def test_responses_have_security_headers(server, path):
    check_security_headers(httpx.get(f"{server}{path}").headers)


HANDSHAKE = (
    "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: {version}\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
)


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        ("\x16\x03\x01\x02\x00\r\n\r\n", 400),  # TLS
        ("GET\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        ("GET / HTTP/1.1\r\nHost: {host}\r\nX-Ä: 1\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: -1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: {host}\r\nX-Long: " + 70_000 * "x", 400),
        (HANDSHAKE, 400),  # of another version of WebSocket
        (HANDSHAKE.replace("Sec-WebSocket-Key", "X-Key"), 400),
        (HANDSHAKE.replace("GET", "POST"), 405),
        (HANDSHAKE.replace("{path}", "/" + 9000 * "x"), 414),
        (HANDSHAKE.replace("{more}", "X-Long: " + 9000 * "x" + "\r\n"), 431),
        (HANDSHAKE.replace("{version}", "13").replace("{path}", "/other"), 404),
        (HANDSHAKE.replace("{version}", "13").replace("{more}", "Origin: https://evil.example\r\n"), 403),
        (HANDSHAKE.replace("{version}", "13").replace("{host}", "evil.example"), 421),
    ],
    ids=lambda value: None if isinstance(value, int) else repr(value[:20]),
)
def test_rejections_have_security_headers(server, request_head, status):
    host = server.removeprefix("http://")
    sent = request_head.format(host=host, path="/ws", version="12", more="")
    with dial(server) as link:
        link.sendall(sent.encode())
        answer = b""
        with contextlib.suppress(ConnectionError):
            while more := link.recv(10_000):
                answer += more
    first, *lines = answer.partition(b"\r\n\r\n")[0].decode().lower().split("\r\n")
    assert int(first.split()[1]) == status
    check_security_headers(dict(line.split(": ", 1) for line in lines))


def test_connections_and_uploads_are_limited_per_client(serving):
    with serving(ServerLimits(port=0, connections_per_client=2, uploads_per_client=2)) as address:
        host = address.removeprefix("http://")
        with contextlib.ExitStack() as links:
            for _ in range(2):
                links.enter_context(dial(address, "127.0.0.2")).sendall(UPLOAD.format(host=host, length=1000).encode())
            for _ in range(200):  # until both are being read
                third = links.enter_context(dial(address, "127.0.0.2"))
                third.sendall(UPLOAD.format(host=host, length=7).encode())
                answer = third.recv(10_000)
                if b" 429 " in answer.split(b"\r\n")[0]:
                    break
                third.close()
            assert b'"too_many"' in answer
            kept = [links.enter_context(dial(address, "127.0.0.2")) for _ in range(3)]
            assert b" 503 " in kept[-1].recv(10_000).split(b"\r\n")[0]
            honest = links.enter_context(dial(address))
            honest.sendall(f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert b" 200 " in honest.recv(10_000).split(b"\r\n")[0]


def test_the_oldest_idle_connection_makes_room(serving):
    with serving(ServerLimits(port=0, connections=2, head_seconds=600)) as address, contextlib.ExitStack() as links:
        idle = [links.enter_context(dial(address)) for _ in range(4)]
        assert httpx.get(f"{address}/health").status_code == 200
        with contextlib.suppress(ConnectionError):
            assert idle[0].recv(1) == b""


def test_sessions_are_limited_per_client_and_in_total(serving):
    with serving(ServerLimits(port=0, sessions_per_client=1)) as address:
        made = httpx.post(f"{address}/sessions", json={}).json()["id"]
        assert fault(httpx.post(f"{address}/sessions", json={})) == (429, "too_many")
        other = httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2"))
        with other:
            assert other.post(f"{address}/sessions", json={}).status_code == 201
        httpx.delete(f"{address}/sessions/{made}")
        assert httpx.post(f"{address}/sessions", json={}).status_code == 201
    with serving(ServerLimits(port=0, sessions=2)) as address:
        assert [httpx.post(f"{address}/sessions", json={}).status_code for _ in range(3)] == [201, 201, 503]


@pytest.mark.parametrize(
    "path", ["/../settings.py", "/%2e%2e/settings.py", "/..%2fsettings.py", "//etc/passwd", "/models/..%2f..%2fcli.py"]
)
def test_files_outside_the_page_are_not_served(server, path):
    with dial(server) as link:
        host = server.removeprefix("http://")
        link.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        assert b" 404 " in link.recv(1000).split(b"\r\n")[0]


def test_sessions_are_created_and_deleted(server):
    made = httpx.post(f"{server}/sessions", json={"keep_audio": False}).json()
    assert (made["digits"], made["streams"], made["keep_audio"]) == ("", 0, False)
    assert made["id"] in [s["id"] for s in httpx.get(f"{server}/sessions").json()["sessions"]]
    assert httpx.get(f"{server}/sessions/{made['id']}").json() == made
    assert fault(httpx.get(f"{server}/sessions/{made['id']}/audio")) == (404, "no_audio")
    assert httpx.delete(f"{server}/sessions/{made['id']}").status_code == 204
    for name in (made["id"], "..%2f..%2fetc", "x" * 5000):
        assert fault(httpx.get(f"{server}/sessions/{name}"))[0] == 404
    assert fault(httpx.post(f"{server}/sessions", json={"keep": True})) == (422, "bad_request")


def test_models_are_those_of_the_server(server, serving, tmp_path):
    assert httpx.get(f"{server}/models/mel_cnn.onnx").content == model_file(PRETRAINED, "mel_cnn").read_bytes()
    shown = httpx.get(f"{server}/models/detector.json").json()
    assert shown["config"] == json.loads(json.dumps(dataclasses.asdict(load_config())))
    assert (shown["tokens"], shown["block"]) == (list(TOKENS), 256)
    shipped = Path(digit_detector.__file__).with_name(PRETRAINED) / FILE
    assert httpx.get(f"{server}/models/acoustic.onnx").content == shipped.read_bytes()
    assert fault(httpx.get(f"{server}/models/other.onnx")) == (404, "no_model")
    shutil.copy(shipped, own := tmp_path / "own.onnx")
    config = load_config(context="any")
    with serving(ServerLimits(port=0), config=config, model=str(own), methods=("ml_mfcc",)) as address:
        assert httpx.get(f"{address}/models/detector.json").json()["config"]["context"] == "any"
        own.write_bytes(b"other")
        assert httpx.get(f"{address}/models/acoustic.onnx").content == b"other"


def test_paths_of_broken_models_are_hidden(serving, seven, tmp_path):
    for pipeline in ("mfcc", "raw_cnn"):
        (tmp_path / f"{pipeline}_classifier").mkdir()
        shutil.copy(model_file(PRETRAINED, pipeline), tmp_path / f"{pipeline}_classifier" / "model.onnx")
    (tmp_path / "raw_cnn_classifier" / "model.onnx").write_bytes(b"damaged")
    with serving(ServerLimits(port=0, model_dir=str(tmp_path))) as address:
        assert fault(httpx.get(f"{address}/models/mel_cnn.onnx")) == (404, "no_model")
        found = {row["name"]: row for row in httpx.get(f"{address}/processors").json()["processors"]}
        assert [found[name]["available"] for name in ("ml_mfcc", "ml_cnn", "ml_raw")] == [True, False, False]
        shown = httpx.get(f"{address}/processors").text + httpx.get(f"{address}/stats/ml_raw").text
        form = {"files": {"file": recording(seven)}, "data": {"method": "ml_raw"}}
        shown += httpx.post(f"{address}/process_audio", **form).text
        assert "its log" in shown
        assert str(tmp_path) not in shown
        assert "ONNX" not in shown


def test_bugs_show_no_internals(serving, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr("digit_detector.webapp.app.Sessions.all", broken)
    with serving() as address:
        response = httpx.get(f"{address}/sessions")
        assert fault(response) == (500, "failed")
        assert "secret" not in response.text
        assert "default-src 'self'" in response.headers["content-security-policy"]
        monkeypatch.undo()
        assert 'digits_requests_total{route="/sessions",status="500"} 1.0' in httpx.get(f"{address}/metrics").text


def test_error_codes_are_documented():
    raised = {"not_found", "method_not_allowed"}  # which come from the framework
    for path in WEBAPP.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                place = {"RejectedError": 1, "error_body": 0, "_refuse": 0}.get(node.func.id)
                if place is not None and isinstance(node.args[place], ast.Constant):
                    raised.add(node.args[place].value)
    rows = re.findall(r"^\| (`.*?) \|", (WEBAPP / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"[a-z_]+", " ".join(rows))) == raised


SCHEMA = schemathesis.openapi.from_dict(make_app(methods=("ml_mfcc",)).openapi())


@SCHEMA.parametrize()
@settings(
    max_examples=25, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
def test_routes_match_their_schema(server, case):
    response = case.call(base_url=server)
    # No schema can say which bytes are a recording.
    valid_is_accepted = [positive_data_acceptance] if case.path == "/process_audio" else []
    case.validate_response(response, excluded_checks=valid_is_accepted)
