"""`digits serve` and app.py as programs."""

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile

from digit_detector.errors import ConfigError, StreamError
from digit_detector.serve import bind, is_local
from digit_detector.serve import main as serve
from digit_detector.webapp.clients import client_address
from digit_detector.webapp.limits import (
    ServerLimits,
    find_misspelt_variables,
    format_default,
    format_limits_table,
    read_limits,
)
from ml_training.data.tts import VOICES, synthesize_words

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = {
    "digits serve": ["-m", "ml_training.cli", "serve"],
    "app.py": [str(ROOT / "app.py")],
    "serve.py": [str(ROOT / "digit_detector" / "serve.py")],
}


@contextmanager
def running(script: str, *options: str, folder: Path | None = None) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server as a program, and its address, as soon as it has printed that."""
    program = subprocess.Popen(
        [sys.executable, "-W", "error", *PROGRAMS[script], *options], text=True, cwd=folder,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        line = program.stdout.readline()
        found = re.fullmatch(r"serving digits at (http://\S+)   \(Ctrl-C ends\)\n", line)
        assert found, line + (program.communicate(timeout=10)[1] if not line else "")
        httpx.get(f"{found[1]}/health", timeout=60)  # answers once the models are loaded
        yield program, found[1]
    finally:
        program.kill()
        program.communicate()


@pytest.mark.parametrize("script", PROGRAMS)
def test_it_serves_until_it_is_interrupted(script):
    with running(script, "--port", "0") as (program, address):
        assert address.startswith("http://127.0.0.1:")
        assert httpx.get(f"{address}/health").json()["status"] == "ok"
        assert "Streaming Digit Detector" in httpx.get(address).text
        program.send_signal(signal.SIGINT)
        output, faults = program.communicate(timeout=20)
    assert program.returncode in (0, 130)
    assert "Traceback" not in output + faults
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")


def test_modules_in_the_current_folder_are_not_imported(tmp_path):
    (tmp_path / "json.py").write_text("raise ImportError('of the folder')", encoding="utf-8")
    with running("app.py", "--port", "0", folder=tmp_path) as (_, address):
        assert httpx.get(f"{address}/health").json()["status"] == "ok"


def test_flags_of_earlier_versions_are_noted_and_ignored():
    flags = ("--pipeline", "mfcc", "mel_cnn", "--spotter", "nowhere.onnx", "--context", "any")
    with running("serve.py", "--port", "0", *flags) as (program, address):
        assert httpx.get(f"{address}/models/detector.json").json()["config"]["context"] == "any"
        program.send_signal(signal.SIGINT)
        notes = program.communicate(timeout=20)[1].splitlines()
    assert [note.split()[0] for note in notes] == ["--pipeline", "--spotter"]


def test_it_ends_during_a_stream():
    from websockets.sync.client import connect

    with (
        running("app.py", "--port", "0") as (program, address),
        connect(address.replace("http", "ws").rstrip("/") + "/ws") as link,
    ):
        link.send('{"type":"start","sample_rate":8000}')
        assert "ready" in link.recv(timeout=20)
        link.send(bytes(1024))
        program.send_signal(signal.SIGTERM)
        program.communicate(timeout=20)
    assert program.returncode is not None


def test_a_taken_port_is_skipped_unless_requested():
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with bind(ServerLimits(port=taken), exact=False) as listening:
            assert taken < listening.getsockname()[1] <= taken + 20
        with pytest.raises(StreamError, match=f"port {taken}: .*--port"):
            bind(ServerLimits(port=taken), exact=True)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--port", "70000"], "port: expected 0 to 65535, got 70000"),
        (["--port", "many"], "--port: expected a whole number, got 'many'"),
        (
            ["--streams", "0", "--workers", "x", "--allow_origin", "here"],
            "3 faults in the server's settings: --workers",
        ),
        (["--host", "no.such.host.invalid"], "no address of this machine"),
        (["--host", "192.0.2.1", "--port", "0"], "name another"),
        (["--model_dir", "nowhere"], "nowhere"),
        (["--thresholds", "nowhere.json"], "nowhere.json"),
        (["--live_model", "nowhere.onnx"], "nowhere.onnx"),
        (["--context", "all"], "--context"),
        (["--listen"], "--listen"),
    ],
)
def test_errors_are_one_line(options, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = serve(options)
    except SystemExit as ended:
        code = ended.code
    captured = capsys.readouterr()
    assert code not in (0, None)
    assert captured.out == ""
    assert expected in captured.err
    assert len(captured.err.strip().splitlines()) == 1


def blocks(language: str) -> list[str]:
    """The code blocks of docs/web.md in a language."""
    text = (ROOT / "docs" / "web.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("bash")), reason="there is no curl here")
def test_documented_curl_commands(server, tmp_path):
    soundfile.write(tmp_path / "x.wav", synthesize_words([(VOICES[1], "seven")], seed=3)[0], 8000)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    typed = [block for block in blocks("bash") if "curl " in block]
    answers = []
    for block in typed:
        script = block.replace("http://127.0.0.1:8000", server.rstrip("/")).replace("curl ", "curl -sS --fail ")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, env=os.environ | {"PATH": path},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, block + done.stderr
        answers += json.loads("[" + done.stdout.replace("}{", "},{") + "]")
    assert (
        len(answers) == sum(block.count("\ncurl ") + block.startswith("curl ") for block in typed) - 1
    )  # DELETE is silent
    results = [result["text"] for answer in answers for result in answer.get("results", ())]
    assert len(results) > 4
    assert set(results) == {"7"}
    assert any(answer.get("keep_audio") for answer in answers)


def test_settings_are_flags_and_documented(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")  # no line is broken
    with pytest.raises(SystemExit):
        serve(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for f in dataclasses.fields(ServerLimits):
        assert f"--{f.name} " in shown
        assert shown.count(f"{f.metadata['help']} (default: {format_default(f)})") == 1
    assert (
        shown.count("(default: ") == len(dataclasses.fields(ServerLimits)) + 3
    )  # --context, --live_model, --thresholds
    page = (ROOT / "docs" / "web.md").read_text(encoding="utf-8")
    assert format_limits_table() in page, "put digit_detector.webapp.limits.format_limits_table() into docs/web.md"


def test_settings_come_from_flags_then_variables_then_defaults():
    environment = {
        "DIGITS_STREAMS": "7", "DIGITS_WORKER_SECONDS": "2.5", "DIGITS_PORT": "1", "DIGITS_HOST": "",
        "DIGITS_ALLOW_HOST": "a.example, b.example",
    }  # fmt: skip
    flags = Namespace(port="2", allow_origin=["https://a.example", "http://b.example:8080"])
    expected = ServerLimits(
        streams=7, worker_seconds=2.5, port=2, allow_host=("a.example", "b.example"),
        allow_origin=("https://a.example", "http://b.example:8080"),
    )  # fmt: skip
    assert read_limits(flags, environment) == expected
    assert read_limits(Namespace(), {}) == ServerLimits()


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(ServerLimits)])
def test_every_setting_is_read_and_checked(name):
    default = getattr(ServerLimits(), name)
    if isinstance(default, str):
        good, bad = "models", None
        expected: object = good
    elif isinstance(default, tuple):
        good, bad = {"allow_origin": "https://a.example"}.get(name, "10.0.0.1"), "http://a/b c".replace(" ", "")
        expected = (good,)
    else:
        good, bad = "1", "nan" if isinstance(default, float) else "-1"
        good = {"message_bytes": "2000", "head_bytes": "2000"}.get(name, good)
        expected = type(default)(good)
    assert getattr(read_limits(Namespace(), {f"DIGITS_{name.upper()}": good}), name) == expected
    if bad is not None:
        with pytest.raises(ConfigError, match=f"1 fault in the server's settings: {name}: expected .*, got "):
            read_limits(Namespace(), {f"DIGITS_{name.upper()}": bad})


def test_misspelt_variables_get_a_suggestion():
    (warning,) = find_misspelt_variables(
        {"DIGITS_STREAM": "5", "DIGITS_STREAMS": "5", "DIGITS_8000_TCP_ADDR": "", "STREAM": ""}
    )
    assert warning == "DIGITS_STREAM is not a setting and is ignored, did you mean DIGITS_STREAMS?"


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.9", "1.2.3.4", "10.0.0.9"),  # not a proxy that is trusted
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "6.6.6.6, 1.2.3.4", "1.2.3.4"),  # what a client wrote comes before what the proxy adds
        ("10.0.0.1", "6.6.6.6, 1.2.3.4, 10.0.0.2", "1.2.3.4"),  # through two proxies
        ("10.0.0.1", "1.2.3.4, unknown", "10.0.0.1"),
        ("::ffff:10.0.0.1", "1.2.3.4", "1.2.3.4"),
        ("2001:db8::1:2:3:4", "", "2001:db8::/64"),
        ("2001:db8::4:3:2:1", "", "2001:db8::/64"),
        ("", "1.2.3.4", ""),
    ],
)
def test_client_addresses_behind_proxies(peer, forwarded, client):
    scope = {
        "type": "http", "client": (peer, 1) if peer else None, "headers": [(b"x-forwarded-for", forwarded.encode())],
    }  # fmt: skip
    assert client_address(scope, ("10.0.0.1", "10.0.0.2")) == client


def test_metrics_are_documented(server):
    shown = set(re.findall(r"^(digits_\w+?)(?:\{.*\})? ", httpx.get(f"{server}/metrics").text, re.MULTILINE))
    documented = set(re.findall(r"`(digits_\w+)", (ROOT / "docs" / "web.md").read_text(encoding="utf-8")))
    assert {name for name in shown if not name.endswith("_created")} == documented


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.4", False), ("my.computer", False)],
)  # fmt: skip
def test_local_addresses(host, local):
    assert is_local(host) is local


@pytest.mark.parametrize(
    ("library", "printed"), [("httpx", ["ml_cnn 7 "]), ("websockets", ["7 ", "\n3 ", "'type': 'stopped'"])]
)
def test_documented_clients(library, printed, server, tmp_path, bundled):
    pause = np.zeros(8000)
    seven, three = bundled[7], bundled[3]
    soundfile.write(tmp_path / "x.wav", seven, 8000)
    soundfile.write(tmp_path / "talk.wav", 0.3 * np.concatenate([pause, seven, pause, three, pause]), 8000)
    (client,) = (block for block in blocks("python") if library in block)
    for scheme in ("http", "ws"):
        client = client.replace(f"{scheme}://127.0.0.1:8000", server.rstrip("/").replace("http", scheme))
    done = subprocess.run([sys.executable, "-c", client], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert all(text in done.stdout for text in printed)
