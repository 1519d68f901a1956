"""A page and its questions on this machine alone: bound to the loopback address, behind a secret in the address."""

from __future__ import annotations

import hmac
import json
import secrets
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pyro_vae.support.formats import one_line, parse_json
from pyro_vae.support.serialization import finite

__all__ = ["Server"]

MOST_BYTES = 2**20  # of a question
SECONDS = 30.0  # that a silent connection is kept

Answer = Callable[[Mapping[str, Any]], Any]


class Server:
    """Serves one page, and answers questions in JSON, to browsers on this machine that know the address.

    Other users of the machine and other pages in the browser do not know the secret in it. The name in the `Host`
    header must be the loopback one, so that no page elsewhere can reach the server under a name of its own.

    Args:
        page: The page.
        questions: The answers by name, each a function of the values of a question.
        port: The port; 0 takes a free one.
    """

    def __init__(self, page: str, questions: Mapping[str, Answer], port: int = 0) -> None:
        self.secret = secrets.token_urlsafe(18)
        lock = threading.Lock()  # a pair's networks and torch's generators are not made for several threads
        handler = _handler(page.encode(), questions, self.secret, lock)
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The address of the page, with its secret."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/{self.secret}/"

    def wait(self) -> None:
        """Wait until the server is closed, or Ctrl-C."""
        while self._thread.is_alive():
            self._thread.join(0.5)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(
    page: bytes, questions: Mapping[str, Answer], secret: str, lock: threading.Lock
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # one connection for all questions
        disable_nagle_algorithm = True  # an answer is sent at once
        timeout = SECONDS
        server_version, sys_version = "pyro_vae", ""

        def do_GET(self) -> None:
            if self._path() == "":
                self._send(200, page, "text/html; charset=utf-8")
            else:
                self._send(404, b"", "text/plain")

        def do_POST(self) -> None:
            name = self._path()
            size = self.headers.get("Content-Length", "")
            is_json = self.headers.get("Content-Type", "").partition(";")[0] == "application/json"
            if name not in questions or not is_json or not size.isdecimal() or int(size) > MOST_BYTES:
                self.close_connection = True
                self._send(404, b"", "text/plain")
                return
            try:
                asked = parse_json(self.rfile.read(int(size)))
                if not isinstance(asked, dict):
                    raise ValueError("an object expected")
                with lock:
                    answer, status = questions[str(name)](asked), 200
            except Exception as error:  # of anybody's pair: the page shows it
                answer, status = {"error": f"{type(error).__name__}: {one_line(error)}"}, 400
            self._send(status, json.dumps(finite(answer)).encode(), "application/json")

        def _path(self) -> str | None:
            """What follows the secret; None for whoever does not know it, or comes under another name."""
            host = self.headers.get("Host", "").rpartition(":")[0]
            given, _, rest = self.path.removeprefix("/").partition("/")
            is_known = hmac.compare_digest(given.encode(), secret.encode())
            return rest if is_known and host in ("127.0.0.1", "localhost") else None

        def _send(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            headers = {"Content-Type": kind, "Content-Length": str(len(content)), "Cache-Control": "no-store"}
            headers |= {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY"}
            headers |= {"Cross-Origin-Resource-Policy": "same-origin", "Referrer-Policy": "no-referrer"}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the address holds the secret."""

    return Handler
