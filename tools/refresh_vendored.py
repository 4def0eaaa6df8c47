"""Fetch the npm packages whose files ship with the page, at their present or another version.

python tools/refresh_vendored.py onnxruntime-web                   the version that ships
python tools/refresh_vendored.py swagger-ui-dist --version 5.36.0  another

Fetches the package from an npm registry (the one that npm is set to, or --registry), checks it by the SHA-512 that the
registry states, and writes the files that the page needs, and their manifest. LICENSE and THIRD_PARTY_NOTICES.txt of
onnxruntime-web are not in its package: compare them with those of the project's release.
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

VENDORED = Path(__file__).resolve().parents[1] / "digit_detector" / "webapp" / "static" / "vendor"
MANIFEST = "manifest.json"
PACKAGES = {  # files of each package
    # The entry without GPU support, its glue, and the smallest of the runtimes.
    "onnxruntime-web": (
        "dist/ort.wasm.min.mjs", "dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm",
    ),
    "swagger-ui-dist": (
        "swagger-ui-bundle.js", "swagger-ui.css", "swagger-ui-bundle.js.LICENSE.txt", "LICENSE", "NOTICE",
    ),
}  # fmt: skip
_MOST = 128 << 20  # bytes of an answer
_SECONDS = 60.0  # without a byte


@program
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", choices=PACKAGES)
    parser.add_argument("--version", help="of the package (default: the one that ships)")
    parser.add_argument("--registry", help="address of an npm registry (default: the one that npm is set to)")
    parser.add_argument("--folder", type=Path, help="where the files go (default: where they ship)")
    args = parser.parse_args(argv)
    shipped = VENDORED / args.package
    version = args.version or json.loads((shipped / MANIFEST).read_text(encoding="utf-8"))["version"]
    folder = args.folder or shipped
    refresh(args.package, folder, args.registry or npm_registry(), version)
    print(f"{args.package} {version} is in {folder}")
    return 0


def npm_registry() -> str:
    """The registry that npm uses. Raises DownloadError without npm."""
    npm = shutil.which("npm")
    if npm is None:
        raise DownloadError("npm is not installed, so its registry is unknown: name one with --registry")
    result = subprocess.run([npm, "config", "get", "registry"], capture_output=True, text=True, timeout=60, check=False)
    if result.returncode or not result.stdout.strip():
        raise DownloadError(f"npm does not name its registry ({result.stderr.strip()}): name one with --registry")
    return result.stdout.strip()


def refresh(package: str, folder: Path, registry: str, version: str) -> None:
    """Fetch, check, and only then write. Raises DownloadError."""
    address = f"{registry.rstrip('/')}/{package}/{version}"
    try:
        description = json.loads(_fetch(address))
        integrity, tarball, licence = (
            description["dist"]["integrity"],
            description["dist"]["tarball"],
            description["license"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadError(f"{address} does not describe a package: expected the JSON of an npm registry") from error
    content = _fetch(tarball)
    _check(content, integrity, tarball)
    files = unpack(content, PACKAGES[package])
    manifest = {
        "package": package, "version": version, "licence": licence, "integrity": integrity,
        "files": {name: hashlib.sha256(files[name]).hexdigest() for name in files},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        write_atomically(folder / name, file)
    write_atomically(folder / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())


def unpack(tarball: bytes, paths: Sequence[str]) -> dict[str, bytes]:
    """The files of these paths in a package, by file name. Raises DownloadError if one is missing."""
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(tarball), mode="r:gz") as archive:
        for path in paths:
            try:
                member = archive.extractfile(f"package/{path}")
            except KeyError:
                member = None
            if member is None:
                raise DownloadError(f"the package has no {path}: this version has another layout, adapt PACKAGES")
            files[path.rpartition("/")[2]] = member.read()
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
        raise DownloadError(f"{address} answers with more than {_MOST >> 20} MB: expected a package")
    return bytes(content)


if __name__ == "__main__":
    sys.exit(main())
