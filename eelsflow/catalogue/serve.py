"""The catalogue's pages on a local address: read-only, for this machine alone."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from functools import lru_cache
from http import HTTPStatus
from urllib.parse import parse_qsl, urlsplit

import sqlalchemy as sa

from eelsflow.bucket import read_from
from eelsflow.catalogue import page
from eelsflow.catalogue.history import history_figure, recorded_in
from eelsflow.catalogue.ledger import Catalogue
from eelsflow.errors import EelsflowError
from eelsflow.loopback import LoopbackHandler
from eelsflow.loopback import serving as serving_pages

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
    "Cache-Control": "no-cache",
}
HEADERS_OF_MAP = HEADERS | {
    "Content-Security-Policy": HEADERS["Content-Security-Policy"].replace("data:;", "data: blob:;")
    + "; script-src 'unsafe-inline'"
}
"""Of ``map.html``: what is written in the page may run, and nothing from elsewhere; its own policy names it by hash."""


@contextlib.contextmanager
def serving(catalogue: Catalogue, *, preferred_port: int = PREFERRED_PORT) -> Iterator[str]:
    """Serve the catalogue for the time of a ``with`` block; provides the address.

    It listens on 127.0.0.1 alone, answers GET and HEAD, and only where it is called by a name of this machine: a page
    elsewhere, whose name is made to point here, gets nothing.
    """

    class Handler(_Handler):
        pass

    Handler.catalogue = catalogue
    with serving_pages(Handler, preferred_port=preferred_port) as address:
        yield address


class _Handler(LoopbackHandler):
    catalogue: Catalogue
    headers_sent = HEADERS

    def do_GET(self) -> None:
        if not self.is_for_us():
            return
        try:
            self._show()
        except (
            sa.exc.OperationalError,
            OSError,
            EelsflowError,
        ) as error:  # the database or a map is not to be had just now
            self.refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"not to be had just now: {error}")

    def _show(self) -> None:
        address = urlsplit(self.path)
        query = dict(parse_qsl(address.query))
        if address.path == "/":
            self._page(page.show_list(self.catalogue, query))
        elif address.path == "/drift":
            self._page(page.show_drift(self.catalogue))
        elif address.path == "/drift.png":
            self.answer(HTTPStatus.OK, self._drift(), "image/png")
        elif found := re.fullmatch(r"/acquisition/(\d{1,12})(?:/([a-z]+\.[a-z]+))?", address.path):
            self._acquisition(int(found[1]), found[2])
        else:
            self.refuse(HTTPStatus.NOT_FOUND, "nothing is here")

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
            self.refuse(HTTPStatus.NOT_FOUND, "nothing is here")
        else:
            headers = HEADERS_OF_MAP if name == "map.html" else HEADERS
            self.answer(HTTPStatus.OK, content, SERVED[name], headers)

    def _drift(self) -> bytes:
        newest = max((one.changed for one in self.catalogue.select()), default=0.0)
        return _draw_drift(self.catalogue, newest)

    def _page(self, html: str) -> None:
        self.answer(HTTPStatus.OK, html.encode(), "text/html; charset=utf-8")


@lru_cache(maxsize=1)
def _draw_drift(catalogue: Catalogue, newest: float) -> bytes:
    from eelsflow.report.style import render

    return render(history_figure(recorded_in(catalogue)), "png")
