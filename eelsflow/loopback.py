"""Pages for a browser on this machine: a server that listens on 127.0.0.1 alone."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOST = "127.0.0.1"
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")

HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
"""Of every answer, beside the handler's own."""


class LoopbackHandler(BaseHTTPRequestHandler):
    """What the handlers of all pages share; `headers_sent` is for a handler to set."""

    headers_sent: Mapping[str, str] = {}
    server_version = "eelsflow"
    sys_version = ""
    timeout = 30  # s, that a browser may keep a thread waiting

    def is_for_us(self) -> bool:
        """Tell whether this machine was asked for by a name of its own, at any port, and refuse where it was not.

        A page elsewhere, whose name is made to point here, gets nothing; a port that is forwarded here does.
        """
        if re.sub(r":\d+$", "", self.headers.get("Host", "")) in LOCAL_NAMES:
            return True
        self.refuse(HTTPStatus.FORBIDDEN, "this page is for the machine that it runs on")
        return False

    def refuse(self, status: HTTPStatus, text: str) -> None:
        """Answer with one line, and do not read what was sent along."""
        self.close_connection = True
        self.answer(status, f"{text}\n".encode(), "text/plain; charset=utf-8")

    def answer(self, status: HTTPStatus, content: bytes, kind: str, headers: Mapping[str, str] | None = None) -> None:
        """Send content of a type (MIME), with the handler's headers or others."""
        self.send_response(status)
        for name, value in (HEADERS | dict(self.headers_sent if headers is None else headers)).items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing: the terminal is for what happens to acquisitions."""


@contextlib.contextmanager
def serving(handler: type[LoopbackHandler], *, preferred_port: int = 0) -> Iterator[str]:
    """Serve pages for the time of a ``with`` block; provides the address.

    Parameters
    ----------
    handler
        What answers.
    preferred_port
        Where another program has it, any free one; 0: any free one.
    """
    try:
        server = ThreadingHTTPServer((HOST, preferred_port), handler)
    except OSError:
        server = ThreadingHTTPServer((HOST, 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name=f"pages on {server.server_port}", daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
