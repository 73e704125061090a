"""A decimal comma of the machine changes nothing."""

import json
import os
import subprocess
import sys

import pytest

from eelsflow.io.zarr_store import write_spectrum_image
from eelsflow.simulator import PRESETS, simulate_acquisition
from eelsflow.simulator.acquisition import AxisParameters

GERMAN = "de_DE.UTF-8"
RUN = """
import contextlib, io, json, locale, sys
locale.setlocale(locale.LC_ALL, "")
from eelsflow import cli
said = [locale.localeconv()["decimal_point"]]
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["eelsflow", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            cli.main()
        except SystemExit as ended:
            assert not ended.code, ended.code
    said.append(printed.getvalue())
print(json.dumps(said))
"""


def run(language, *commands):
    """Run commands where a language's numbers are written; return the decimal point there and what was printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LC_")}
    arguments = json.dumps([[str(part) for part in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", RUN, arguments],
        env=environment | {"LANG": language, "LC_ALL": language}, capture_output=True, text=True,
    )  # fmt: skip
    if "unsupported locale" in done.stderr:
        pytest.skip(f"the locale {language} is not on this machine; localedef -i de_DE -f UTF-8 {language} makes it")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_files_and_texts_are_the_same_where_commas_are_decimal(saved_model, tmp_path):
    axis = AxisParameters(start=470.0, n_channels=520)
    parameters = PRESETS["paper"].model_copy(update={"shape": (12, 12), "axis": axis})
    path = write_spectrum_image(simulate_acquisition(parameters, 3).image, tmp_path / "cube.zarr")
    text = tmp_path / "spectrum.csv"
    text.write_text("eV;counts\n" + "".join(f"{500 + 0.5 * n};{100 + n % 7}\n" for n in range(200)).replace(".", ","))
    found = {}
    for language, point in (("C.UTF-8", "."), (GERMAN, ",")):
        out = tmp_path / point
        said, described, of_text, plain, _ = run(
            language,
            ("info", path, "--json"),
            ("info", text, "--json"),
            ("info", path),
            ("classify", path, "--model", saved_model, "--out", out),
        )
        assert said == point
        assert json.loads(of_text)["energy_loss"]["dispersion"] == pytest.approx(0.5)
        files = {file.name: file.read_bytes() for file in sorted((out / "cube").iterdir()) if file.is_file()}
        assert {"map.html", "index.html", "map.png", "summary.json"} <= set(files)
        found[point] = (described, plain, of_text, files)
    assert found["."] == found[","]
