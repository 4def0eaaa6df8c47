"""Replace the onnxruntime-web that ships with the page by another version, or by the same anew.

python tools/refresh_onnxruntime_web.py                   the version that ships
python tools/refresh_onnxruntime_web.py --version 1.31.0  another

Fetches the package from an npm registry (the one that npm is set to, or --registry), checks it by the SHA-512 that the
registry states, and writes the three files that a browser needs to run models on one thread, and their manifest.
LICENSE and THIRD_PARTY_NOTICES.txt are not in the package: compare them with those of the project's release.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from digit_detector.cli.program import program
from digit_detector.errors import DownloadError
from digit_detector.files import write_atomically

PACKAGE = "onnxruntime-web"
VENDORED = Path(__file__).resolve().parents[1] / "digit_detector" / "webapp" / "static" / "vendor" / PACKAGE
MANIFEST = "manifest.json"
# The entry that knows no GPU, its glue, and the smallest of the runtimes.
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
_MOST = 128 << 20  # bytes of an answer
_SECONDS = 60.0  # without a byte


@program
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", help="of the package; the one that ships unless given")
    parser.add_argument("--registry", help="address of an npm registry; the one that npm is set to unless given")
    parser.add_argument("--folder", type=Path, default=VENDORED, help="where the files go")
    asked = parser.parse_args(argv)
    version = asked.version or json.loads((VENDORED / MANIFEST).read_text(encoding="utf-8"))["version"]
    refresh(asked.folder, asked.registry or npm_registry(), version)
    print(f"{PACKAGE} {version} is in {asked.folder}")
    return 0


def npm_registry() -> str:
    """The registry that npm asks. Raises DownloadError without npm."""
    npm = shutil.which("npm")
    if npm is None:
        raise DownloadError("npm is not installed, so there is no telling its registry: name one with --registry")
    said = subprocess.run([npm, "config", "get", "registry"], capture_output=True, text=True, timeout=60, check=False)
    if said.returncode or not said.stdout.strip():
        raise DownloadError(f"npm does not say its registry ({said.stderr.strip()}): name one with --registry")
    return said.stdout.strip()


def refresh(folder: Path, registry: str, version: str) -> None:
    """Fetch, check, and only then write. Raises DownloadError."""
    address = f"{registry.rstrip('/')}/{PACKAGE}/{version}"
    try:
        said = json.loads(_fetch(address))
        integrity, tarball, licence = said["dist"]["integrity"], said["dist"]["tarball"], said["license"]
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadError(f"{address} does not describe a package: expected what an npm registry answers") from error
    content = _fetch(tarball)
    _check(content, integrity, tarball)
    files = unpacked(content)
    manifest = {
        "package": PACKAGE, "version": version, "licence": licence, "integrity": integrity,
        "files": {name: hashlib.sha256(files[name]).hexdigest() for name in FILES},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        write_atomically(folder / name, files[name])
    write_atomically(folder / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())


def unpacked(tarball: bytes) -> dict[str, bytes]:
    """The FILES of a package. Raises DownloadError where one is missing."""
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(tarball), mode="r:gz") as archive:
        for name in FILES:
            try:
                member = archive.extractfile(f"package/dist/{name}")
            except KeyError:
                member = None
            if member is None:
                raise DownloadError(f"the package has no dist/{name}: this version is laid out otherwise, adapt FILES")
            files[name] = member.read()
    return files


def _check(content: bytes, integrity: str, address: str) -> None:
    """Compare with "sha512-..." as in https://www.w3.org/TR/SRI/. Raises DownloadError."""
    kind, _, digest = integrity.partition("-")
    try:
        expected = base64.b64decode(digest, validate=True)
    except binascii.Error:
        expected = b""
    if kind != "sha512" or len(expected) != 64:
        raise DownloadError(f"the registry states the integrity {integrity!r}: expected a SHA-512")
    if hashlib.sha512(content).digest() != expected:
        raise DownloadError(f"{address} ({len(content)} bytes) is not what the registry describes: fetch it again")


def _fetch(address: str) -> bytes:
    if urlsplit(address).scheme not in ("http", "https"):
        raise DownloadError(f"{address} is no address of a registry: expected http:// or https://")
    try:
        with urllib.request.urlopen(address, timeout=_SECONDS) as answer:
            content: Any = answer.read(_MOST + 1)
    except urllib.error.HTTPError as error:
        raise DownloadError(f"{address} was refused: {error.code} {error.reason}") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise DownloadError(f"{address} cannot be reached: {reason}; check the network, or --registry") from error
    if len(content) > _MOST:
        raise DownloadError(f"{address} answers with more than {_MOST >> 20} MB: that is no such package")
    return bytes(content)


if __name__ == "__main__":
    sys.exit(main())
