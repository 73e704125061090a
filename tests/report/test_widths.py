"""Pages as a person has them: on a screen, on a telephone, and printed."""

import pytest

from eelsflow.maps import classify
from eelsflow.simulator import PRESETS, simulate_acquisition


@pytest.mark.slow
def test_the_report_and_its_passports_fit_any_width_and_are_printed(browser, full_report):
    folder = full_report.parent
    passports = sorted(folder.glob("passports/*.html"))[:2]
    assert passports
    for path in (full_report, *passports):
        browser.open(path.as_uri(), ready="document.readyState == 'complete'")
        for width in (1280, 400):
            browser.resize(width)
            assert not browser.is_wider_than_the_window(), (path.name, width)
        printed = browser.print()
        assert printed.startswith(b"%PDF")
        assert len(printed) > 20_000  # its figures are in it
        assert browser.problems == []
        assert [address for address in browser.requests if not address.startswith(folder.as_uri())] == []
        unnamed = "[...document.images].filter(one => !one.alt).length"
        assert browser.evaluate(unnamed) == 0


@pytest.mark.slow
def test_the_page_of_a_map_fits_any_width_and_is_printed(browser, saved_model, tmp_path):
    image = simulate_acquisition(PRESETS["paper"].model_copy(update={"shape": (12, 12)}), 3).image
    classify(image, model=saved_model).save(tmp_path)
    browser.open((tmp_path / "index.html").as_uri(), ready="document.readyState == 'complete'")
    for width in (1280, 400):
        browser.resize(width)
        assert not browser.is_wider_than_the_window(), width
    assert len(browser.print()) > 20_000
    assert browser.problems == []
    assert browser.evaluate("[...document.images].filter(one => !one.alt).length") == 0
