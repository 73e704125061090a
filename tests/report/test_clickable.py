import base64
import json
import os
import re
import subprocess
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest

from eelsflow.catalogue.ledger import Catalogue, Found
from eelsflow.catalogue.serve import serving
from eelsflow.catalogue.states import State
from eelsflow.edges import SHIPPED
from eelsflow.energy import EnergyAxis
from eelsflow.errors import InputError
from eelsflow.io.zarr_store import open_dataset, write_spectrum_image
from eelsflow.maps.build import map_prepared
from eelsflow.maps.write import write_map
from eelsflow.models.bundle import ModelBundle
from eelsflow.preprocess.blocks import prepare_blocks
from eelsflow.preprocess.presets import resolve_preset
from eelsflow.report import clickable, clickable_spectra
from eelsflow.report.clickable_spectra import FINENESS, Spectra
from eelsflow.report.packing import LARGEST, code_maps, code_rows, pack
from eelsflow.simulator import PRESETS, simulate_acquisition
from eelsflow.simulator.acquisition import AxisParameters
from eelsflow.spectrum_image import build_spectrum_image

STEPS = resolve_preset(["vacuum_mask", {"step": "background", "shrink": False}, "rebin", "spatial"])
NAME = "scan </script><b>&.zarr"


class Map:
    """A prepared acquisition, its map and the page."""

    def __init__(self, image, model, folder, *, title=NAME, give_image=True, preset=STEPS):
        self.image, self.folder = image, folder
        store = write_spectrum_image(image, folder / "raw.zarr")
        prepare_blocks(store, folder / "out.zarr", edge=SHIPPED["O_K"], preset=preset)
        self.bundle = ModelBundle.load(model)
        self.product = open_dataset(folder / "out.zarr")
        self.map = map_prepared(self.product, self.bundle, recorded=image if give_image else None)
        self.found, self.summary = self.map.pixels, self.map.summary
        write_map(self.map, folder, title=title)
        self.page = folder / "map.html"
        self.html = self.page.read_text(encoding="utf-8")
        self.about = read_about(self.html)

    def maps(self):
        return unpack_maps(self.html, self.about["maps"], self.about["shape"])

    def spectra(self, name):
        shape = self.about["spectra"][name]
        powers = unpack_maps(self.html, self.about["powers"], self.about["shape"])[name]
        rows = unpack_rows(codes_of(self.html, name), shape["size"])
        values = rows * 2.0 ** (powers.ravel()[:, None] / self.about["per_octave"])
        return values.reshape(*self.about["shape"], -1)


def read_about(html):
    (found,) = re.findall(r'<script type="application/json" id="about">(.*?)</script>', html)
    return json.loads(found)


def codes_of(html, name):
    """Decode what the page's script decodes, on its own terms."""
    planes = re.findall(rf'data-name="{name}">([^<]*)</script>', html)
    return sum(
        np.frombuffer(zlib.decompress(base64.b64decode(plane)), dtype=np.uint8).astype(np.int64) << (8 * number)
        for number, plane in enumerate(planes)
    )


def unpack_rows(codes, size):
    codes = codes.reshape(-1, size)
    differences = np.where(codes % 2, -(codes + 1) // 2, codes // 2)
    values = np.empty_like(differences)
    for row, difference in zip(values, differences, strict=True):
        last = [difference[0]] * 4
        row[0] = difference[0]
        for channel in range(1, size):
            row[channel] = difference[channel] + (sum(last) + 2) // 4
            last = [row[channel], *last[:3]]
    return values


def unpack_maps(html, told, shape):
    name = "maps" if "class" in told else "powers"
    codes = codes_of(html, name).reshape(-1, *shape)
    return {
        one: np.where(codes[of["number"]] == 0, np.nan, of["lowest"] + (codes[of["number"]] - 1) * of["step"])
        for one, of in told.items()
    }


def simulated(shape=(16, 20), seed=3):
    axis = AxisParameters(start=485.0, n_channels=900)
    return simulate_acquisition(PRESETS["paper"].model_copy(update={"shape": shape, "axis": axis}), seed).image


@pytest.fixture(scope="module")
def small(saved_model, tmp_path_factory):
    image = simulated()
    damaged = image.values.astype(np.float32)
    damaged[3, 4, 200] = np.nan
    return Map(image.copy(data=damaged), saved_model, tmp_path_factory.mktemp("small"))


def test_recorded_counts_in_the_page_are_those_of_the_file(small):
    wide = small.about["spectra"]["recorded"]
    energies = small.image["energy_loss"].values + small.product.attrs["energy_offset"]
    inside = (energies >= 513.0 - 1e-6) & (energies < 567.0 - 1e-6)
    assert wide["exact"]
    assert wide["size"] == inside.sum()
    [(start, size)] = wide["stretches"]
    assert size == wide["size"]
    assert start == pytest.approx(energies[inside][0])
    recorded = small.image.values[:, :, inside]
    recorded[3, 4] = 0.0  # the lost one
    assert np.array_equal(small.spectra("recorded"), recorded)
    assert "Recorded counts are exact" in small.html


def test_prepared_spectra_are_kept_to_a_share_of_their_noise(small):
    specimen = small.found.specimen
    prepared = small.product["gathered"].values[specimen]
    known = np.isfinite(prepared).all(axis=0)
    error = small.spectra("prepared")[specimen] - prepared[:, known]
    noise = np.sqrt(np.median(small.product["gathered_variance"].values[specimen][:, known], axis=1))
    assert np.abs(error / noise[:, None]).max() < 0.25
    assert np.abs(error / noise[:, None]).max() > 0.01
    assert not small.spectra("prepared")[~specimen].any()


def test_every_number_of_a_pixel_is_in_the_page(small):
    maps, mapped, specimen = small.maps(), open_dataset(small.folder / "map.zarr"), small.found.specimen
    index = mapped["class_index"].values
    assert np.array_equal(np.where(np.isnan(maps["class"]), -1, maps["class"]), index)
    assert np.array_equal(maps["lost"], mapped["lost"].values)
    assert maps["lost"].sum() == 1
    for name, values in (
        *((f"probability-{k}", mapped["probability"].values[..., k]) for k in range(2)),
        *((f"fraction-{k}", mapped["fraction"].values[..., k]) for k in range(2)),
        *((f"fraction_error-{k}", mapped["fraction_error"].values[..., k]) for k in range(2)),
        ("distance", np.where(np.isfinite(mapped["distance"].values), mapped["distance"].values, np.nan)),
        ("effective_spectra", mapped["effective_spectra"].values),
        ("electrons", small.product["electrons"].values),
        ("counts-0", small.found.judged.counts),
    ):
        step = small.about["maps"][name]["step"]
        np.testing.assert_allclose(maps[name][specimen], values[specimen], atol=0.51 * step, err_msg=name)
        assert np.isnan(maps[name][~specimen]).all() or name == "counts-0"
    amplitude = small.product["background_amplitude"].values[specimen]
    np.testing.assert_allclose(maps["amplitude-0"][specimen], amplitude, atol=1e-4 * np.ptp(amplitude))


def test_residuals_of_simulated_pixels_stay_within_the_noise_that_is_drawn(small):
    """About the acquisition's own mean shape a band is within two deviations 95 % of the time."""
    shapes = small.found.judged
    known = shapes.known & small.found.specimen
    values, relative = shapes.values[known], shapes.relative_variance[known]
    residual = values - np.average(values, axis=0, weights=1 / relative)
    inside = np.abs(residual) < 2 * np.sqrt(relative[:, None] * np.diag(small.found.noise))
    assert 0.85 < inside.mean() < 0.99


def test_the_same_map_gives_the_same_page_here_and_in_another_process(small, tmp_path):
    again = tmp_path / "again"
    again.mkdir()
    write_map(small.map, again, title=NAME)
    assert (again / "map.html").read_bytes() == small.page.read_bytes()
    code = "from eelsflow.report.clickable_figures import draw_figures; print(draw_figures(2, 'nm'), end='')"
    elsewhere = {**os.environ, "PYTHONHASHSEED": "1"}
    told = subprocess.run([sys.executable, "-c", code], env=elsewhere, check=True, capture_output=True, text=True)
    assert re.findall(r'id="figures">(.*?)</script>', small.html) == [told.stdout.replace("<", "\\u003c")]


def test_names_cannot_leave_their_place_in_the_page(small):
    assert NAME not in small.html
    assert json.dumps(NAME) not in small.html
    assert "<h1>scan &lt;/script&gt;&lt;b&gt;&amp;.zarr</h1>" in small.html
    assert small.about["title"] == NAME


def test_the_page_asks_for_nothing_and_names_its_scripts_by_hash(small):
    body = re.sub(r"<script>.*?</script>", "", small.html, flags=re.DOTALL)
    assert not re.findall(r"(?:src|href)=|url\(|@import", body)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', small.html)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert "unsafe-inline" not in policy.partition("style-src")[0]


@pytest.mark.parametrize("shape", [(1, 30), (30, 1), (1, 1)])
def test_a_line_scan_and_a_single_spectrum_have_a_page(saved_model, tmp_path, shape):
    whole = simulated((6, 5)).values.reshape(30, -1)[: shape[0] * shape[1]].reshape(*shape, -1)
    image = build_spectrum_image(whole, simulated((6, 5))["energy_loss"].values, pixel_size=2.0, pixel_unit="nm")
    steps = resolve_preset([{"step": "background", "shrink": False}, {"step": "rebin", "method": "linear"}])
    found = Map(image, saved_model, tmp_path, title="line", preset=steps)
    assert found.about["shape"] == list(shape)
    recorded = found.about["spectra"]["recorded"]
    assert found.spectra("recorded").shape == (*shape, recorded["size"])
    assert found.about["spectra"]["prepared"]["scale"] == 1.0  # counts per channel of the detector already
    assert found.about["pixel_unit"] == "nm"


def test_without_the_image_what_was_recorded_is_put_together_and_the_page_says_so(saved_model, tmp_path):
    found = Map(simulated((8, 8)), saved_model, tmp_path, give_image=False)
    assert "spikes and dead channels were taken out" in found.html
    assert not found.about["spectra"]["recorded"]["exact"]
    product = found.product
    energies = product["energy_loss"].values[product["valid"].values]
    width = 0.1 / np.diff(product["mean_energy_loss"].values).mean()
    pivot = found.about["background"]["pivots"][0]
    fitted = product["background_amplitude"].values[..., None] * (energies / pivot) ** (
        -product["background_exponent"].values[..., None]
    )
    expected = product["intensity"].values[..., product["valid"].values] + width * fitted
    np.testing.assert_allclose(found.spectra("recorded"), expected, atol=0.25 * np.sqrt(expected.max()))


def test_an_image_of_other_pixels_is_refused(small, tmp_path):
    other = replace(small.map, recorded=small.image[:15])
    with pytest.raises(InputError, match=r"15 x 20 pixels and the map 16 x 20.*give the image that was prepared"):
        write_map(other, tmp_path, title="")


def test_a_page_has_a_bounded_size_and_says_what_was_coarsened(small, tmp_path, monkeypatch):
    sizes = []
    for limit in (1_700_000, 1_430_000, 0):  # nothing is as small as the last
        monkeypatch.setattr(clickable, "SMALL_BYTES", limit)
        write_map(small.map, tmp_path, title=NAME)
        html = (tmp_path / "map.html").read_text(encoding="utf-8")
        sizes.append(len(html))
        assert sizes[-1] <= limit or limit == 0
        assert ("Recorded counts are exact" in html) == (limit == 1_700_000)
    assert "Channels are added up" in html
    assert sizes == sorted(sizes, reverse=True)


def test_of_a_large_image_every_second_pixel_is_in_the_page(small, tmp_path, monkeypatch):
    monkeypatch.setattr(clickable_spectra, "MOST_PIXELS", 100)
    write_map(small.map, tmp_path, title=NAME)
    html = (tmp_path / "map.html").read_text(encoding="utf-8")
    about = read_about(html)
    assert about["shape"] == [8, 10]
    assert about["stride"] == 2
    assert "every second pixel" in html
    recorded = unpack_rows(codes_of(html, "recorded"), about["spectra"]["recorded"]["size"])
    assert np.array_equal(recorded.reshape(8, 10, -1), small.spectra("recorded")[::2, ::2])


def test_where_pixels_do_not_fit_there_are_fewer_in_the_page(small, tmp_path, monkeypatch):
    monkeypatch.setattr(clickable, "SMALL", 10)
    monkeypatch.setattr(clickable, "LARGE_BYTES", 1_345_000)
    write_map(small.map, tmp_path, title=NAME)
    html = (tmp_path / "map.html").read_text(encoding="utf-8")
    assert read_about(html)["stride"] > 1
    assert len(html) <= 1_345_000


def test_whole_numbers_are_packed_exactly_to_the_largest_that_fit():
    rng = np.random.default_rng(1)
    rows = rng.integers(-LARGEST, LARGEST + 1, (20, 7)).astype(np.int32)
    rows[0], rows[1] = LARGEST, np.where(np.arange(7) % 2, LARGEST, -LARGEST)
    html = "".join(f'data-name="a">{plane}</script>' for plane in pack([code_rows(rows[:5]), code_rows(rows[5:])]))
    assert np.array_equal(unpack_rows(codes_of(html, "a"), 7), rows)
    maps = np.array([[1.0, np.nan, 3.04], [np.nan] * 3])
    codes, lowest = code_maps(maps, np.array([0.1, 1.0]))
    assert codes.tolist() == [[1, 0, 21], [0, 0, 0]]
    assert lowest.tolist() == [1.0, 0.0]


def test_counts_that_are_no_whole_numbers_are_kept_to_a_share_of_their_noise():
    values = np.random.default_rng(2).normal(100.0, 10.0, (30, 40))
    axis = clickable_spectra.EnergyAxis(500.0, 0.1, 40)
    spectra = Spectra(axis, lambda rows: values[:30], lambda *_: np.full(30, 10.0), 10.0, 1, 30)
    packed = spectra.pack(0.0)
    assert not packed.exact
    assert np.exp2(packed.power / 8).max() <= FINENESS[0].prepared * 10.0


READY = "document.documentElement?.dataset.ready == 'yes'"
SAID = "document.getElementById('said').textContent"


def text_of(browser):
    """Return the columns that the page would copy, and their header, by its fall-back."""
    browser.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined, configurable: true})")
    browser.evaluate("document.getElementById('copy').click()")
    browser.wait_for("!document.getElementById('text').hidden")
    header, *rows = browser.evaluate("document.getElementById('text').value").splitlines()
    columns = np.array([[float(cell or "nan") for cell in row.split("\t")] for row in rows])
    return header.split("\t"), columns.T


def place_of(browser, x, y):
    """Return where a pixel's centre is on the screen."""
    return browser.evaluate(
        "(() => { const plot = Bokeh.documents[0].get_model_by_name('map'), view = Bokeh.index.find_one(plot);"
        " const box = view.canvas_view.el.getBoundingClientRect(), size = "
        f"JSON.parse(document.getElementById('about').textContent).pixel_size;"
        f" return [box.left + view.frame.x_scale.compute({x} * size), box.top + view.frame.y_scale.compute({y} * size)]"
        "})()"
    )


@pytest.mark.slow
def test_a_browser_draws_what_is_chosen_by_mouse_and_by_keys(browser, small):
    browser.resize(1280)
    seconds = browser.open(small.page.as_uri(), ready=READY)
    print(f"opened in {seconds:.2f} s, {len(small.html) / 1e6:.1f} MB")
    specimen = np.argwhere(small.found.specimen)
    y, x = (int(one) for one in specimen[len(specimen) // 2])

    place = place_of(browser, x, y)
    browser.drag(*place, *place)
    browser.wait_for(f"{SAID}.startsWith('Pixel x {x}, y {y}: ')")
    assert small.bundle.classes[small.found.class_index[y, x]] in browser.evaluate(SAID)
    header, (energy, recorded, prepared, mixture, residual) = text_of(browser)
    assert header == [
        "energy loss (eV)", "recorded (counts)", "prepared (counts)", "mixture (counts)", "residual (counts)",
    ]  # fmt: skip
    assert np.array_equal(recorded, small.spectra("recorded")[y, x])
    inside = np.isfinite(mixture)
    np.testing.assert_allclose(residual[inside], (prepared - mixture)[inside], atol=1e-4)
    assert energy[inside].min() == pytest.approx(525.5, abs=0.3)
    # the mixture has the counts of the pixel in the window, but for half a band at either end
    window = (energy >= 525) & (energy < 555)
    assert np.nansum(mixture[window]) == pytest.approx(np.nansum(prepared[window]), rel=0.1)

    other = browser.evaluate(SAID)
    browser.evaluate("document.getElementById('map').focus()")
    browser.press("ArrowRight")
    browser.wait_for(f"{SAID}.startsWith('Pixel x {x + 1}, y {y}: ')")
    browser.press("ArrowUp")
    browser.wait_for(f"{SAID}.startsWith('Pixel x {x + 1}, y {y - 1}: ')")
    browser.press("ArrowDown")
    browser.press("ArrowLeft")
    browser.wait_for(f"{SAID} == {json.dumps(other)}")
    browser.press("ArrowRight", shift=True)
    browser.wait_for(f"{SAID}.includes('specimen pixels of x {x} to {x + 1}')")
    browser.press("Escape")
    browser.wait_for(f"{SAID} == {json.dumps(other)}")
    assert browser.problems == []
    assert browser.requests == [small.page.as_uri()]


@pytest.mark.slow
def test_a_browser_shows_the_page_from_the_catalogue_without_a_complaint(browser, small, tmp_path):
    catalogue = Catalogue(f"sqlite:///{tmp_path / 'catalogue.db'}")
    catalogue.take_over(Found("/in/scan.dm3", 1, "1"), State.CLASSIFIED, map=str(small.folder))
    with serving(catalogue, preferred_port=0) as url:
        browser.open(f"{url}/acquisition/1/map.html", ready=READY)
        browser.evaluate("document.head.append(Object.assign(document.createElement('script'), {text: 'found = 1'}))")
        assert browser.evaluate("typeof found") == "undefined"  # what is not named by its hash does not run
        (problem,) = browser.problems
        assert "Content Security Policy" in problem
        assert [address for address in browser.requests if not address.endswith("/map.html")] == []


@pytest.mark.slow
def test_a_rectangle_shows_the_mean_of_its_specimen_pixels(browser, small):
    browser.resize(1280)
    browser.open(small.page.as_uri(), ready=READY)
    browser.drag(*place_of(browser, 2, 3), *place_of(browser, 9, 8))
    browser.wait_for(f"{SAID}.includes('x 2 to 9, y 3 to 8')")
    chosen = np.zeros(small.found.specimen.shape, dtype=bool)
    chosen[3:9, 2:10] = True
    chosen &= small.found.specimen
    assert f"Mean of the {chosen.sum()} specimen pixels" in browser.evaluate(SAID)
    _, (_, recorded, *_) = text_of(browser)
    np.testing.assert_allclose(recorded, small.spectra("recorded")[chosen].mean(axis=0), rtol=1e-6)
    shown = browser.evaluate("document.querySelector('#classes tbody td:nth-child(3)').textContent")
    assert float(shown.split()[0]) == pytest.approx(np.nanmean(small.found.fraction[chosen][:, 0]), abs=2e-3)
    assert browser.problems == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_every_layer_is_drawn_and_nothing_is_wider_than_the_window(browser, small, width):
    browser.resize(width)
    browser.open(small.page.as_uri(), ready=READY)
    maps = small.maps()
    confidence = np.fmax(maps["probability-0"], maps["probability-1"])
    for number, layer in enumerate(small.about["layers"]):
        browser.evaluate(
            f"(() => {{ const list = document.getElementById('layer'); list.value = {number};"
            " list.dispatchEvent(new Event('change')) })()"
        )
        shown = browser.evaluate("[...Bokeh.documents[0].get_model_by_name('layer').data.image[0]]")
        expected = confidence if layer["name"] == "confidence" else maps[layer["name"]]
        values = np.array([np.nan if value is None else value for value in shown]).reshape(expected.shape)
        np.testing.assert_allclose(values, expected, rtol=1e-6)
        assert values[small.found.specimen & np.isfinite(values)].size
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.problems == []


@pytest.mark.slow
def test_a_page_of_128_by_128_pixels_has_less_than_10_megabytes_and_opens(browser, saved_model, tmp_path):
    found = Map(simulated((128, 128)), saved_model, tmp_path)
    print(f"opened in {browser.open(found.page.as_uri(), ready=READY):.2f} s")
    assert found.page.stat().st_size < 10e6
    assert browser.problems == []


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1e6, 1.0, 1e-4], ids=["many counts", "without a pixel size", "few counts"])
def test_images_of_any_scale_and_without_a_pixel_size_are_drawn_with_references_and_residual(
    browser, saved_model, tmp_path, factor
):
    image = simulated()
    image = image.copy(data=image.values * factor)
    image.attrs |= {"pixel_size": 1.0, "pixel_unit": "px"}
    found = Map(image, saved_model, tmp_path)
    browser.resize(1280)
    browser.open(found.page.as_uri(), ready=READY)
    specimen = np.argwhere(found.found.specimen)
    y, x = (int(one) for one in specimen[len(specimen) // 2])
    place = place_of(browser, x, y)
    browser.drag(*place, *place)
    browser.wait_for(f"{SAID}.startsWith('Pixel x {x}, y {y}: ')")
    _, (energy, recorded, prepared, mixture, residual) = text_of(browser)
    window = (energy >= 525) & (energy < 555)
    assert 0.3 < np.median(recorded) / np.median(image.values[y, x]) < 3
    assert np.nansum(mixture[window]) == pytest.approx(np.nansum(prepared[window]), rel=0.1)
    np.testing.assert_allclose(residual[window][1:], (prepared - mixture)[window][1:], atol=1e-4 * factor)
    bar = browser.evaluate("Bokeh.documents[0].get_model_by_name('map').above.map(one => one.label)")
    assert "@{value} px" in bar
    assert browser.problems == []


def test_spectra_are_packed_the_same_in_whatever_portions(monkeypatch):
    rng, n_rows, width = np.random.default_rng(3), 70, 13
    cube = rng.normal(100.0, 10.0, (n_rows, width, 40))
    cube[5, 2, 7] = np.nan
    noise_of_row = 1.0 + np.arange(n_rows)

    def noise(values, rows, together):
        return np.repeat(noise_of_row[rows], width) * np.sqrt(together)

    spectra = Spectra(EnergyAxis(500.0, 0.1, 40), lambda rows: cube[rows].reshape(-1, 40), noise, 10.0, n_rows, 910)
    packed = []
    for at_once in (1, 100, 10**9):
        monkeypatch.setattr("eelsflow.report.clickable_spectra._AT_ONCE", at_once)
        packed.append(spectra.pack(0.5, 0.2))
    for one in packed[1:]:
        assert one.planes == packed[0].planes
        np.testing.assert_array_equal(one.power, packed[0].power)
    whole = np.floor(8 * np.log2(0.5 * np.sqrt(2) * np.repeat(noise_of_row, width)))
    np.testing.assert_array_equal(np.delete(packed[0].power, 5 * width + 2), np.delete(whole, 5 * width + 2))
