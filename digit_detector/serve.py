"""Command `digits serve`, and app.py: serve the web page and the API."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import sys
import threading
import webbrowser
from argparse import SUPPRESS
from collections.abc import Sequence

from digit_detector.cli.parser import OneLineParser
from digit_detector.cli.program import program, require
from digit_detector.errors import ConfigError, StreamError
from digit_detector.streaming.flags import add_detector_flags, read_config
from digit_detector.webapp.limits import PREFIX, ServerLimits, add_limit_flags, find_misspelt_variables, read_limits

_MAX_TRIES = 20  # ports that are tried, from the default one on


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C; returns the exit code."""
    parser = OneLineParser(description="Serve a page that recognises spoken digits, an HTTP API and a WebSocket.")
    parser.add_argument("--no_browser", action="store_true", default=SUPPRESS, help="do not open the page in a browser")
    add_detector_flags(parser)
    add_limit_flags(parser)
    args = parser.parse_args(argv)
    limits = read_limits(args, os.environ)
    require("the web page", ("fastapi", "uvicorn", "multipart", "prometheus_client"), "web")
    from digit_detector.webapp.app import make_app
    from digit_detector.webapp.server import make_server, page_address

    logging.basicConfig(format="%(levelname)s: %(message)s")
    for warning in find_misspelt_variables(os.environ):
        logging.warning(warning)
    app = make_app(limits, read_config(args), getattr(args, "live_model", None))
    listening = bind(limits, exact="port" in args or bool(os.environ.get(PREFIX + "PORT")))
    address = page_address(listening)
    print(f"serving digits at {address}   (Ctrl-C ends)", flush=True)
    if not is_local(limits.host):
        print("every machine that reaches this one can use it: see SECURITY.md", file=sys.stderr, flush=True)
    if "no_browser" not in args and sys.stdout.isatty():
        threading.Timer(0.5, webbrowser.open, (address,)).start()
    with listening:
        make_server(app, limits).run([listening])
    return 0


def bind(limits: ServerLimits, exact: bool) -> socket.socket:
    """A socket that listens at the port of `limits`, or unless `exact` at one of the next if it is taken.

    Raises ConfigError if the address is not of this machine, StreamError if no port is free.
    """
    family = socket.AF_INET6 if ":" in limits.host else socket.AF_INET
    reason: str | None = ""
    for port in (limits.port,) if exact else range(limits.port, limits.port + _MAX_TRIES):
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: cuts off clients that do not read
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * limits.unread_seconds)
        try:
            listening.bind((limits.host, port))
            listening.listen(256)  # early clients wait until the models are loaded
            return listening
        except socket.gaierror as error:
            listening.close()
            raise ConfigError([f"host: {limits.host!r} is no address of this machine ({error.strerror})"]) from error
        except OSError as error:
            listening.close()
            reason = error.strerror
    raise StreamError(f"cannot listen on {limits.host}, port {limits.port}: {reason}; name another with --port")


def is_local(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    sys.exit(main())
