"""The catalogue's pages on a local address: read-only, for this machine alone."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Mapping
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import sqlalchemy as sa

from eelsflow.bucket import read_from
from eelsflow.catalogue import page
from eelsflow.catalogue.history import history_figure, recorded_in
from eelsflow.catalogue.ledger import Catalogue
from eelsflow.errors import EelsflowError

PREFERRED_PORT = 4280
SERVED = {
    "map.png": "image/png",
    "spectra.png": "image/png",
    "index.html": "text/html; charset=utf-8",
    "map.html": "text/html; charset=utf-8",
}
"""Of a map's folder; nothing else is."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
HEADERS_OF_MAP = HEADERS | {
    "Content-Security-Policy": HEADERS["Content-Security-Policy"].replace("data:;", "data: blob:;")
    + "; script-src 'unsafe-inline'"
}
"""Of ``map.html``: what is written in the page may run, and nothing from elsewhere; its own policy names it by hash."""

LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")


@contextlib.contextmanager
def serving(catalogue: Catalogue, *, preferred_port: int = PREFERRED_PORT) -> Iterator[str]:
    """Serve the catalogue for the time of a ``with`` block; provides the address.

    It listens on 127.0.0.1 alone, answers GET and HEAD, and only where it is called by a name of this machine: a page
    elsewhere, whose name is made to point here, gets nothing.
    """

    class Handler(_Handler):
        pass

    Handler.catalogue = catalogue
    try:
        server = ThreadingHTTPServer(("127.0.0.1", preferred_port), Handler)
    except OSError:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="catalogue", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    catalogue: Catalogue
    server_version = "eelsflow"
    sys_version = ""

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host not in LOCAL_NAMES:
            self._answer(HTTPStatus.FORBIDDEN, b"this page is for the machine that it runs on\n", "text/plain")
            return
        try:
            self._show()
        except (
            sa.exc.OperationalError,
            OSError,
            EelsflowError,
        ) as error:  # the database or a map is not to be had just now
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, f"not to be had just now: {error}\n".encode(), "text/plain")

    def _show(self) -> None:
        address = urlsplit(self.path)
        query = dict(parse_qsl(address.query))
        if address.path == "/":
            self._page(page.show_list(self.catalogue, query))
        elif address.path == "/drift":
            self._page(page.show_drift(self.catalogue))
        elif address.path == "/drift.png":
            self._answer(HTTPStatus.OK, self._drift(), "image/png")
        elif found := re.fullmatch(r"/acquisition/(\d{1,12})(?:/([a-z]+\.[a-z]+))?", address.path):
            self._acquisition(int(found[1]), found[2])
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"nothing is here\n", "text/plain")

    def do_HEAD(self) -> None:  # the name that http.server asks for
        self.do_GET()

    def _acquisition(self, number: int, name: str | None) -> None:
        one = self.catalogue.get(number)
        if one is not None and name is None:
            self._page(page.show_one(self.catalogue, one))
            return
        content = None
        if one is not None and one.map is not None and name in SERVED:
            content = read_from(one.map, name)
        if content is None or name is None:
            self._answer(HTTPStatus.NOT_FOUND, b"nothing is here\n", "text/plain")
        else:
            headers = HEADERS_OF_MAP if name == "map.html" else HEADERS
            self._answer(HTTPStatus.OK, content, SERVED[name], headers)

    def _drift(self) -> bytes:
        newest = max((one.changed for one in self.catalogue.select()), default=0.0)
        return _draw_drift(self.catalogue, newest)

    def _page(self, html: str) -> None:
        self._answer(HTTPStatus.OK, html.encode(), "text/html; charset=utf-8")

    def _answer(self, status: HTTPStatus, content: bytes, kind: str, headers: Mapping[str, str] = HEADERS) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing: the terminal is for what happens to acquisitions."""


@lru_cache(maxsize=1)
def _draw_drift(catalogue: Catalogue, newest: float) -> bytes:
    from eelsflow.report.style import render

    return render(history_figure(recorded_in(catalogue)), "png")
