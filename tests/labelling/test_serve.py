import http.client
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from urllib.parse import urlsplit

import numpy as np
import pytest

from eelsflow.dataset.labels import read_phase_fraction
from eelsflow.errors import InputError
from eelsflow.io.zarr_store import write_spectrum_image
from eelsflow.labelling.field import Field, mean_spectrum, open_field
from eelsflow.labelling.page import colors_of, layers_of
from eelsflow.labelling.regions import Drawing, Region, read_drawing, start_drawing
from eelsflow.labelling.serve import Session, serving
from eelsflow.models.bundle import ModelBundle
from eelsflow.simulator import PRESETS, simulate_acquisition
from eelsflow.simulator.acquisition import AxisParameters

SHAPE = (12, 16)
SQUARE = {"class": "FeO", "polygon": [[2, 2], [10, 2], [10, 9], [2, 9]]}


def small_field():
    """A field of flat spectra, whose right half is brighter, with vacuum in the first column."""
    rng = np.random.default_rng(3)
    strength = np.where(np.arange(SHAPE[1]) < 8, 100.0, 200.0) * np.ones(SHAPE)
    specimen = np.ones(SHAPE, dtype=bool)
    specimen[:, 0] = False
    spectra = strength[..., None] / 10 * (1 + 0.1 * rng.standard_normal((*SHAPE, 20)))
    return Field(
        name="scan <1>.dm3",
        specimen=specimen,
        strength=strength.astype(np.float32),
        components=rng.random((*SHAPE, 3)).astype(np.float32),
        energy_loss=525.0 + np.arange(20.0),
        spectra=spectra.astype(np.float32),
        n_window=10,
    )


@pytest.fixture
def session(tmp_path):
    truth = tmp_path / "scan.truth.npz"
    drawing = start_drawing(truth, classes=["FeO", "Fe3O4"], shape=SHAPE, sha256="abc")
    return Session(small_field(), drawing, truth, acquisition=tmp_path / "scan.dm3")


@pytest.fixture
def address(session):
    with serving(session) as url:
        yield url


def ask(address, what="", body=None, **headers):
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    try:
        if body is None:
            connection.request("GET", parts.path + what, headers=headers)
        else:
            sent = {"Content-Type": "application/json"} | headers
            connection.request("POST", parts.path + what, body=json.dumps(body), headers=sent)
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def test_the_page_and_all_that_it_loads_come_from_this_address(address):
    response, html = ask(address)
    assert response.status == 200
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "http" not in policy
    assert "unsafe-eval" not in policy
    assert b"http" not in html
    for what, kind in (("label.js", "text/javascript"), ("label.css", "text/css"), ("bokeh.js", "text/javascript")):
        response, content = ask(address, what)
        assert response.headers.get_content_type() == kind
        assert len(content) > 1000


def test_nobody_gets_anything_without_the_token_or_by_another_name_or_from_another_page(address):
    parts = urlsplit(address)
    root = f"http://{parts.netloc}"
    assert parts.hostname == "127.0.0.1"
    assert len(parts.path) > 20
    for path in ("/", "/start", "/wrong/", "/wrong/start", parts.path + "../start", parts.path + "static/label.js"):
        assert ask(root, path)[0].status == 404, path
    assert ask(root + "/wrong/", "save", {"regions": [SQUARE]})[0].status == 404
    assert ask(address, Host="evil.example")[0].status == 403
    assert ask(address, Host=f"evil.example:{parts.port}")[0].status == 403
    assert ask(address, Host=f"localhost:{parts.port}")[0].status == 200
    assert ask(address, "save", {"regions": [SQUARE]}, Origin="http://evil.example")[0].status == 403
    assert ask(address, "save", {"regions": [SQUARE]}, **{"Content-Type": "text/plain"})[0].status == 404
    assert ask(address, "start", {})[0].status == 404


def test_what_is_no_region_is_refused_and_nothing_is_written(address, session):
    for body in ([], {}, {"regions": [{"class": "no"}]}, {"regions": []}, {"regions": 1}):
        response, content = ask(address, "save", body)
        assert response.status == 400, body
        assert json.loads(content)["error"]
    response, _ = ask(address, "save", {"regions": [SQUARE]}, **{"Content-Length": str(1 << 30)})
    assert response.status == 413
    assert not session.truth.exists()


def test_a_look_returns_labels_counts_and_mean_spectra_with_their_errors(address, session):
    _, content = ask(address, "look", {"regions": [SQUARE], "drawing": {**SQUARE, "polygon": [[0, 0], [2, 0], [2, 2]]}})
    found = json.loads(content)
    assert found["counts"] == {"FeO": 56, "Fe3O4": 0, "mixed": 0}
    assert found["spectra"]["Fe3O4"]["specimen"] == 0
    pixels = Region.model_validate(SQUARE).pixels(SHAPE)
    expected = mean_spectrum(session.field, pixels)
    assert found["spectra"]["FeO"]["mean"] == pytest.approx(expected.mean, abs=1e-5)
    assert found["drawing"]["pixels"] == 3
    assert found["drawing"]["specimen"] == 2  # the first column is vacuum


def test_a_page_does_not_save_over_what_another_one_saved_or_a_program_wrote_since(session, tmp_path):
    assert session.save({"regions": [SQUARE]}) == {"labelled": 56}
    assert session.save({"regions": [SQUARE]}) == {"labelled": 56}  # its own, again
    drawing = start_drawing(session.truth, classes=["FeO", "Fe3O4"], shape=SHAPE, sha256="abc")
    other = Session(small_field(), drawing, session.truth, acquisition=tmp_path / "scan.dm3")
    other.save({"regions": [SQUARE | {"class": "Fe3O4"}]})
    with pytest.raises(InputError, match="was changed by another page"):
        session.save({"regions": [SQUARE]})
    assert read_drawing(session.truth).counts()["Fe3O4"] == 56


def test_the_error_of_a_mean_spectrum_is_how_much_such_means_scatter():
    field = small_field()
    rng = np.random.default_rng(1)
    truth = np.ones(20)
    apart = []
    for _ in range(200):
        noisy = field.strength[..., None] / 10 * (1 + 0.1 * rng.standard_normal((*SHAPE, 20)))
        one = mean_spectrum(replace(field, spectra=noisy.astype(np.float32)), np.ones(SHAPE, dtype=bool))
        apart.append((one.mean - truth) / one.error)
    assert one.pixels == 12 * 15
    assert np.std(apart) == pytest.approx(1.0, abs=0.05)
    assert abs(np.mean(apart)) < 0.1


def test_a_field_has_layers_and_with_a_model_its_map_and_doubt(saved_model, tmp_path):
    parameters = PRESETS["paper"].model_copy(
        update={"shape": (16, 16), "axis": AxisParameters(start=470.0, n_channels=520)}
    )
    path = write_spectrum_image(simulate_acquisition(parameters, 3).image, tmp_path / "cube.zarr")
    bundle = ModelBundle.load(saved_model)
    field = open_field(path, edge=bundle.edge, model=bundle)
    assert field.shape == (16, 16)
    assert np.nanmin(field.components) == 0
    assert np.nanmax(field.components) == 1
    assert np.nanmean(field.strength[field.specimen]) > 2 * np.nanmean(field.strength[~field.specimen])
    mean = mean_spectrum(field, field.specimen)
    window = (field.energy_loss > 525) & (field.energy_loss < 555)
    assert np.nanmean(mean.mean[window]) == pytest.approx(1.0, abs=0.02)
    before = (field.energy_loss > 515) & (field.energy_loss < 522)
    assert abs(np.nanmean(mean.mean[before])) < 0.05
    drawing = start_drawing(tmp_path / "t.npz", classes=bundle.classes, shape=(16, 16), sha256="abc")
    start = Session(field, drawing, tmp_path / "t.npz", acquisition=path).start()
    assert [layer["name"].split()[0] for layer in start["layers"]] == [
        "Strength", "Principal", "Principal", "Principal", "Principal", "Class", "Confidence", "Doubt",
    ]  # fmt: skip
    assert start["layers"][5]["classes"] == bundle.classes
    json.dumps(start)


def test_a_class_has_one_colour_whatever_the_order_of_the_model_and_of_the_person(pixel_map):
    field = replace(small_field(), mapped=pixel_map.found)
    drawing = Drawing(classes=("Fe3O4", "FeO", "Fe2O3"), shape=SHAPE, sha256="abc")
    colors = colors_of(drawing, field)
    assert list(colors) == ["Fe3O4", "FeO", "Fe2O3"]
    field = replace(field, mapped=replace(pixel_map.found, class_index=np.zeros(SHAPE, dtype=np.int16),
                                          probability=np.ones((*SHAPE, 2), dtype=np.float32)))  # fmt: skip
    (layer,) = [one for one in layers_of(field, colors) if one.classes]
    assert layer.classes == {"FeO": colors["FeO"], "Fe3O4": colors["Fe3O4"]}
    assert (layer.values[:, 1:] == 0).all()  # FeO is the model's first


FRAME = """(() => {
  const plot = Bokeh.documents.map((one) => one.get_model_by_name("map")).find((one) => one)
  const view = Bokeh.index.find_one(plot)
  const box = view.el.getBoundingClientRect(), frame = view.frame.bbox
  return [box.x + frame.left, box.y + frame.top, frame.width, frame.height]
})()"""


@pytest.mark.slow
def test_what_is_drawn_in_a_browser_is_saved_with_the_pixels_inside_and_no_other(browser, address, session):
    browser.resize(1280)
    browser.open(address, ready="document.body?.dataset.ready === 'yes'")
    assert browser.evaluate("document.getElementById('name').textContent") == "scan <1>.dm3"
    left, top, width, height = browser.evaluate(FRAME)

    def at(x, y):
        return left + x / SHAPE[1] * width, top + y / SHAPE[0] * height

    browser.evaluate("document.querySelector('[data-class=Fe3O4]').click()")
    *corners, last = SQUARE["polygon"]
    for corner in corners:
        browser.click(*at(*corner))
        time.sleep(0.4)  # two clicks in a short time are a double click
    browser.click(*at(*last), times=2)
    browser.wait_for("document.querySelector('[data-class=Fe3O4] .count').textContent === '56 px'")
    browser.evaluate("document.querySelector('[data-class=FeO]').click()")
    browser.evaluate("document.querySelector('[data-tool=rectangle]').click()")
    browser.drag(*at(12, 2), *at(15, 5), rest=0.5)
    browser.wait_for("document.querySelector('[data-class=FeO] .count').textContent === '9 px'")
    browser.wait_for("!document.getElementById('save').disabled")
    browser.evaluate("document.getElementById('save').click()")
    browser.wait_for("document.getElementById('said').textContent.startsWith('saved 65')")
    assert browser.problems == []
    phases, fraction = read_phase_fraction(session.truth)
    expected = np.full((2, *SHAPE), np.nan)
    expected[:, 2:9, 2:10] = [[[0.0]], [[1.0]]]
    expected[:, 2:5, 12:15] = [[[1.0]], [[0.0]]]
    assert phases == ["FeO", "Fe3O4"]
    assert np.array_equal(fraction, expected, equal_nan=True)
    regions = read_drawing(session.truth).regions
    assert [(region.label, len(region.polygon)) for region in regions] == [("Fe3O4", 4), ("FeO", 4)]


@pytest.mark.slow
def test_the_command_prints_its_address_and_ctrl_c_leaves_nothing_running(tmp_path):
    parameters = PRESETS["paper"].model_copy(
        update={"shape": (12, 12), "axis": AxisParameters(start=485.0, n_channels=400)}
    )
    path = write_spectrum_image(simulate_acquisition(parameters, 3).image, tmp_path / "cube.zarr")
    command = [sys.executable, "-m", "eelsflow.cli", "label", path, "--classes", "FeO,Fe3O4", "--no-browser"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address = running.stdout.readline().strip()
        assert ask(address, "save", {"regions": [SQUARE]})[0].status == 200
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=30)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 0
    assert "cube.truth.npz: FeO 56, Fe3O4 0, mixed 0 of 144 pixels" in err
    with pytest.raises(ConnectionRefusedError):
        ask(address)
