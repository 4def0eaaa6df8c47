"""Vendored npm packages: their files match their manifests, are packaged, and can be refreshed."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import tarfile
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePath
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
LICENCES = {
    "onnxruntime-web": ("MIT", {"LICENSE", "THIRD_PARTY_NOTICES.txt"}),
    "swagger-ui-dist": ("Apache-2.0", set()),
}


def _tool() -> Any:
    """tools/ is no package."""
    spec = importlib.util.spec_from_file_location("refresh", ROOT / "tools" / "refresh_vendored.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = _tool()
PACKAGE = "onnxruntime-web"
NEW = {path: f"another {path}".encode() for path in tool.PACKAGES[PACKAGE]}


class Registry:
    """A package as an npm registry tells of it, on 127.0.0.1."""

    def __init__(self) -> None:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = registry.answers.get(self.path)
                self.send_response(404 if content is None else 200)
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.answers: dict[str, bytes] = {}
        self.publish(NEW)

    def publish(self, files: dict[str, bytes], **changed: str) -> None:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(f"package/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        tarball = file.getvalue()
        integrity = f"sha512-{base64.b64encode(hashlib.sha512(tarball).digest()).decode()}"
        dist = {"integrity": integrity, "tarball": f"{self.address}/package.tgz"} | changed
        self.answers["/package.tgz"] = tarball
        self.answers["/onnxruntime-web/9.9.9"] = json.dumps({"license": "MIT", "dist": dist}).encode()


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join(timeout=5)


def manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / tool.MANIFEST).read_text(encoding="utf-8"))
    return content


def check(folder: Path) -> None:
    for name, digest in manifest(folder)["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name


@pytest.mark.parametrize("package", tool.PACKAGES)
def test_the_files_that_ship_are_those_of_the_manifest(package):
    folder, names = tool.VENDORED / package, {path.rpartition("/")[2] for path in tool.PACKAGES[package]}
    licence, further = LICENCES[package]
    shipped = manifest(folder)
    assert (shipped["package"], shipped["licence"]) == (package, licence)
    assert set(shipped["files"]) == names
    assert {path.name for path in folder.iterdir()} == {*names, *further, tool.MANIFEST}
    check(folder)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["digit_detector"]
    for path in folder.iterdir():
        name = path.relative_to(ROOT / "digit_detector").as_posix()
        assert any(PurePath(name).match(pattern) for pattern in patterns), name
    assert folder.relative_to(ROOT).as_posix() in (ROOT / "NOTICE").read_text(encoding="utf-8")


def test_another_version_takes_the_place_of_the_files(registry, tmp_path, capsys):
    (tmp_path / "ort.wasm.min.mjs").write_bytes(b"of old")
    arguments = [PACKAGE, "--version", "9.9.9", "--registry", f"{registry.address}/", "--folder", str(tmp_path)]
    assert tool.main(arguments) == 0
    assert "onnxruntime-web 9.9.9" in capsys.readouterr().out
    written = {f"dist/{path.name}": path.read_bytes() for path in tmp_path.iterdir() if path.name != tool.MANIFEST}
    assert written == NEW
    assert manifest(tmp_path)["version"] == "9.9.9"
    check(tmp_path)


@pytest.mark.parametrize(
    ("files", "changed", "why"),
    [
        (NEW, {"integrity": "sha512-" + base64.b64encode(bytes(64)).decode()}, "is not what the registry describes"),
        (NEW, {"integrity": "sha1-AAAA"}, "expected a SHA-512"),
        (NEW, {"tarball": "file:///etc/hostname"}, "no address of a registry"),
        ({"dist/ort.wasm.min.mjs": b"alone"}, {}, "another layout"),
    ],
)
def test_untrusted_packages_change_nothing(registry, tmp_path, files, changed, why, capsys):
    registry.publish(files, **changed)
    assert tool.main([PACKAGE, "--version", "9.9.9", "--registry", registry.address, "--folder", str(tmp_path)]) == 1
    assert why in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
