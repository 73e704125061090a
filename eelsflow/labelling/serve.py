"""The page to label on, on a local address: for this machine alone, and who knows the token in the address."""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import threading
from collections.abc import Iterator
from http import HTTPStatus
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eelsflow.dataset.manifest import name_truth
from eelsflow.digest import digest_file
from eelsflow.errors import EelsflowError, InputError
from eelsflow.labelling.field import Field, MeanSpectrum, mean_spectrum
from eelsflow.labelling.page import page_content
from eelsflow.labelling.regions import NOT_LABELLED, Drawing, label_codes, parse_regions, write_drawing
from eelsflow.loopback import LoopbackHandler
from eelsflow.loopback import serving as serving_pages

MOST_BYTES = 16 << 20
"""Of what the page may send: some hundred thousand corners."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "Cache-Control": "no-store",
}
_STATIC = {
    "": ("label.html", "text/html; charset=utf-8"),
    "label.js": ("label.js", "text/javascript; charset=utf-8"),
    "label.css": ("label.css", "text/css; charset=utf-8"),
}


class Session:
    """One acquisition on the page, and where its labels go.

    Parameters
    ----------
    field, drawing
        The acquisition, and what was drawn on it before.
    truth
        The file that Save writes.
    manifest, acquisition
        A manifest whose row of the acquisition is then to name the truth; None: no manifest is touched.
    """

    def __init__(
        self, field: Field, drawing: Drawing, truth: Path, *, manifest: Path | None = None, acquisition: Path
    ) -> None:
        self.field, self.drawing, self.truth = field, drawing, truth
        self.manifest, self.acquisition = manifest, acquisition
        self._lock = threading.Lock()
        self._on_disk = _digest_if_there(truth)

    def start(self) -> dict[str, Any]:
        """Return what the page begins with."""
        return page_content(self.field, self.drawing, truth=self.truth, manifest=self.manifest)

    def look(self, asked: Any) -> dict[str, Any]:
        """Return the labels, counts and mean spectra of the regions drawn, and of one that is being drawn."""
        drawing = self._drawn(asked)
        labels = drawing.labels
        codes = label_codes(drawing.classes)
        answer: dict[str, Any] = {
            "labels": base64.b64encode(labels.astype("<i2").tobytes()).decode(),
            "energy_loss": self.field.energy_loss.tolist(),
            "spectra": {
                name: _as_json(mean_spectrum(self.field, labels == code)) for name, code in codes.items() if name
            },
            "counts": drawing.counts(),
        }
        pending = asked.get("drawing")
        if pending is not None:
            (region,) = parse_regions([pending], drawing.classes, where="the region being drawn")
            pixels = region.pixels(self.field.shape)
            answer["drawing"] = _as_json(mean_spectrum(self.field, pixels)) | {"pixels": int(pixels.sum())}
        return answer

    def save(self, asked: Any) -> dict[str, Any]:
        """Write the truth file; return what was written."""
        with self._lock:
            drawing = self._drawn(asked)
            if _digest_if_there(self.truth) != self._on_disk:
                raise InputError(
                    f"{self.truth} was changed by another page or program since this one was opened, and saving would "
                    "lose what it says now; start `eelsflow label` again, which goes on from there, or name another "
                    "truth file (--out)"
                )
            write_drawing(drawing, self.truth)
            self.drawing, self._on_disk = drawing, _digest_if_there(self.truth)
            if self.manifest is not None:
                name_truth(self.manifest, self.acquisition, self.truth)
        return {"labelled": int((drawing.labels != NOT_LABELLED).sum())}

    def _drawn(self, asked: Any) -> Drawing:
        if not isinstance(asked, dict):
            raise InputError("the page sent no regions; reload it")
        regions = parse_regions(asked, self.drawing.classes, where="the page")
        return self.drawing.model_copy(update={"regions": tuple(regions)})


def _digest_if_there(path: Path) -> str | None:
    return digest_file(path) if path.exists() else None


def _as_json(found: MeanSpectrum) -> dict[str, Any]:
    return {"mean": _numbers(found.mean), "error": _numbers(found.error), "specimen": found.pixels}


def _numbers(values: NDArray[np.float64]) -> list[float | None]:
    return [round(float(value), 5) if np.isfinite(value) else None for value in values]


@contextlib.contextmanager
def serving(session: Session, *, port: int = 0) -> Iterator[str]:
    """Serve the page for the time of a ``with`` block; provides the address.

    It listens on 127.0.0.1 alone, and answers only under a random token and where it is called by a name of this
    machine: neither another user's browser nor a page elsewhere, whose name is made to point here, gets anything.
    """

    class Handler(_Handler):
        pass

    Handler.session, Handler.token = session, secrets.token_urlsafe(16)
    with serving_pages(Handler, preferred_port=port) as address:
        yield f"{address}/{Handler.token}/"


class _Handler(LoopbackHandler):
    session: Session
    token: str
    headers_sent = HEADERS

    def do_GET(self) -> None:
        page = self._page()
        if page is None:
            return
        if page == "start":
            self._json(HTTPStatus.OK, self.session.start())
        elif page == "bokeh.js":
            self.answer(HTTPStatus.OK, _bokeh_js(), "text/javascript; charset=utf-8")
        elif page in _STATIC:
            name, kind = _STATIC[page]
            self.answer(HTTPStatus.OK, (resources.files("eelsflow.labelling") / "static" / name).read_bytes(), kind)
        else:
            self.refuse(HTTPStatus.NOT_FOUND, "nothing is here")

    def do_POST(self) -> None:
        page = self._page()
        if page is None:
            return
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{self.headers.get('Host', '')}":
            self.refuse(HTTPStatus.FORBIDDEN, "this is for its own page")
            return
        work = {"look": self.session.look, "save": self.session.save}.get(page)
        length = self.headers.get("Content-Length", "")
        if work is None or self.headers.get_content_type() != "application/json" or not length.isdecimal():
            self.refuse(HTTPStatus.NOT_FOUND, "nothing is here")
            return
        if int(length) > MOST_BYTES:
            self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "these are more regions than anybody draws")
            return
        try:
            self._json(HTTPStatus.OK, work(json.loads(self.rfile.read(int(length)))))
        except (EelsflowError, ValueError, RecursionError) as error:
            self._json(HTTPStatus.BAD_REQUEST, {"error": str(error)})

    def _page(self) -> str | None:
        """Return what is asked for, below the token; None where it was refused."""
        if not self.is_for_us():
            return None
        parts = self.path.partition("?")[0].split("/")
        if len(parts) != 3 or not secrets.compare_digest(parts[1].encode(), self.token.encode()):
            self.refuse(HTTPStatus.NOT_FOUND, "nothing is here")
            return None
        return parts[2]

    def _json(self, status: HTTPStatus, content: Any) -> None:
        self.answer(status, json.dumps(content).encode(), "application/json")


def _bokeh_js() -> bytes:
    return (resources.files("bokeh") / "server" / "static" / "js" / "bokeh.min.js").read_bytes()
