import urllib.error
import urllib.request

import pytest

from eelsflow.catalogue.history import history_figure, recorded_in
from eelsflow.catalogue.ledger import Catalogue, Found
from eelsflow.catalogue.page import narrow, show_list
from eelsflow.catalogue.serve import serving
from eelsflow.catalogue.states import State
from eelsflow.errors import InputError

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001a5f6"
    "45400000000049454e44ae426082"
)


def facts(offset, drift=()):
    return {
        "pixels": 4,
        "classes": {"FeO": 3},
        "model": "mlls",
        "warnings": [],
        "drift": list(drift),
        "conditions": {"energy_offset": offset, "dose": None},
        "training": {"energy_offset": {"low": -1.0, "high": 1.0}},
    }


@pytest.fixture
def filled(url, clock, tmp_path):
    """A catalogue of two maps, one of them drifted, and a quarantined file; a minute between them."""
    catalogue = Catalogue(url, clock=clock)
    for name, state, more in (
        ("a.dm3", State.CLASSIFIED, {"facts": facts(0.1)}),
        ("b <i>.dm3", State.CLASSIFIED, {"facts": facts(3.0, ["energy offset 3 eV, training -1 to 1"])}),
        ("c.dm3", State.QUARANTINED, {"reason": "it is <b>empty</b>"}),
    ):
        clock.now += 86400
        folder = tmp_path / "maps" / name
        if state is State.CLASSIFIED:
            folder.mkdir(parents=True)
            for picture in ("map.png", "spectra.png"):
                (folder / picture).write_bytes(PIXEL)
            (folder / "map.html").write_text("<script>a page of its own</script>")
            (folder / "secret.txt").write_text("not to be served")
            more["map"] = str(folder)
        catalogue.take_over(Found(f"/in/{name}", 1, "1"), state, **more)
    return catalogue


@pytest.fixture
def server(filled):
    with serving(filled, preferred_port=0) as url:
        yield url


def get(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as response:
        return response, response.read().decode(errors="replace")


def status_of(url, method="GET", **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method, headers=headers)) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_list_has_the_newest_first_with_state_model_warnings_and_nothing_from_elsewhere(server):
    response, html = get(server)
    assert html.index("c.dm3") < html.index("b &lt;i&gt;.dm3") < html.index("a.dm3")
    assert "2 classified, 1 quarantined" in html
    assert "1 warning: drift: energy offset 3 eV" in html
    assert "it is &lt;b&gt;empty" in html
    assert "<script" not in html
    assert "http" not in html.replace("http-equiv", "")
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")


def test_the_list_is_narrowed_by_name_state_and_date(filled):
    everything = filled.select()

    def names(**query):
        return [one.name for one in narrow(everything, query)]

    assert names(name="A.DM3") == ["a.dm3"]
    assert names(state="quarantined") == ["c.dm3"]
    day = "1970-01-14"
    assert names(since=day) == ["b <i>.dm3", "c.dm3"]
    assert names(until=day) == ["a.dm3", "b <i>.dm3"]  # the day itself is in
    with pytest.raises(InputError, match="is no date"):
        names(since="soon")
    assert "is no date" in show_list(filled, {"since": "soon"})


def test_many_acquisitions_come_in_pages(filled, clock):
    for number in range(130):
        filled.take_over(Found(f"/in/{number:03d}.msa", 1, "1"), State.QUARANTINED, reason="bad")
    assert "page 1 of 3" in show_list(filled, {})
    assert "page 3 of 3" in show_list(filled, {"page": "99"})
    assert "older" not in show_list(filled, {"page": "3"})


def test_an_acquisition_tells_its_history_and_what_to_type_to_try_it_again(server):
    _, html = get(f"{server}/acquisition/3")
    assert "<pre>eelsflow backfill /in/c.dm3</pre>" in html
    assert "taken over from the ledger" in html
    _, html = get(f"{server}/acquisition/2")
    assert "--force ingested" in html
    assert "&#39;/in/b &lt;i&gt;.dm3&#39;" in html  # as a shell takes it


def test_pictures_of_maps_and_drift_are_served_and_no_other_file(server):
    assert get(f"{server}/acquisition/1/map.png")[0].headers["Content-Type"] == "image/png"
    assert get(f"{server}/drift.png")[0].headers["Content-Type"] == "image/png"
    for path in (
        "/acquisition/1/secret.txt",
        "/acquisition/1/../../etc/passwd",
        "/acquisition/1/%2e%2e/secret.txt",
        "/acquisition/3/map.png",
        "/acquisition/99",
        "/etc/passwd",
    ):
        assert status_of(server + path) == 404, path


def test_scripts_run_in_the_page_of_a_map_alone_and_none_from_elsewhere(server):
    policies = {
        path: get(f"{server}/acquisition/1{path}")[0].headers["Content-Security-Policy"]
        for path in ("/map.html", "/map.png", "")
    }
    assert "script-src 'unsafe-inline'" in policies["/map.html"]
    assert all(policy.startswith("default-src 'none'") for policy in policies.values())
    assert not any("script-src" in policies[path] for path in ("/map.png", ""))
    assert 'href="/acquisition/1/map.html"' in get(f"{server}/acquisition/1")[1]


def test_it_is_read_only_and_for_this_machine(server):
    assert status_of(server, method="POST") == 501
    assert status_of(server, Host="evil.example") == 403
    assert status_of(server, method="HEAD") == 200
    assert server.startswith("http://127.0.0.1:")


def test_the_history_shows_the_range_and_what_lies_outside(filled):
    (panel,) = history_figure(recorded_in(filled)).axes
    labels = [text.get_text() for text in panel.get_legend().get_texts()]
    assert labels == ["training acquisitions", "acquisitions", "outside"]
    assert panel.get_ylabel() == "eV"


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/", "/drift", "/acquisition/1", "/?state=quarantined"])
def test_a_browser_shows_the_pages_without_a_complaint_in_any_width_and_on_paper(browser, server, path):
    browser.open(server + path, ready="document.readyState == 'complete'")
    assert browser.evaluate("document.querySelector('h1').textContent")
    for width in (1280, 400):
        browser.resize(width)
        assert not browser.is_wider_than_the_window(), width
    assert browser.print().startswith(b"%PDF")
    assert browser.problems == []
    assert all(address.startswith(server) for address in browser.requests)
