"""What every test may use."""

import json
import shutil
import sys
import tempfile
import uuid
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import numpy as np
import pytest
import yaml
from hypothesis import settings

from deployments.services import BUCKET, NotInstalledError, object_store, postgresql
from eelsflow.edges import SHIPPED

# No deadline: machines are shared and noisy, and the first example pays for imports. Always the same examples, so that
# a change is what makes a test fail; `make fuzz` draws others, and more (`tests.strategies.examples` scales with it).
settings.register_profile("eelsflow", deadline=None, derandomize=True)
settings.register_profile("fuzz", deadline=None, derandomize=False, max_examples=500, print_blob=True)
settings.load_profile("eelsflow")

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real spectra beside the checkout; the test is skipped where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"real spectra are not at {REAL_DATA}; they are not part of the repository")
    return REAL_DATA


@pytest.fixture(scope="session")
def postgresql_server(tmp_path_factory):
    """A PostgreSQL server, as USER@HOST:PORT; the test is skipped where it is not installed."""
    with tempfile.TemporaryDirectory(prefix="eelsflow-") as folder:  # its user cannot look into the tests' folders
        Path(folder).chmod(0o755)
        try:
            with postgresql(Path(folder) / "server") as server:
                yield server
        except NotInstalledError as error:
            pytest.skip(str(error))


@pytest.fixture(scope="session")
def object_store_server():
    """The environment by which an S3 endpoint is found, whose bucket is `deployments.services.BUCKET`."""
    with object_store() as environment:
        yield environment


@pytest.fixture
def bucket_url(object_store_server, monkeypatch):
    """A folder of its own in an S3 bucket, that this process can use."""
    for name, value in object_store_server.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def webhook_url():
    """A webhook's address, and the list of what it gets."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/secret-token", got
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def labelled_table(tmp_path_factory):
    """Two classes of noisy peaks in six groups each, wide enough for true shifts; saved as a table."""
    rng = np.random.default_rng(5)
    energy_loss = 690 + 0.5 * np.arange(100)
    spectra, label, group = [], [], []
    for name, position, ratio in (("Mn2+", 709.0, 0.5), ("Mn4+", 711.5, 0.8)):
        for number in range(6):
            for _ in range(12):
                peaks = np.exp(-(((energy_loss - position) / 2) ** 2)) + ratio * np.exp(
                    -(((energy_loss - position - 9) / 2) ** 2)
                )
                spectra.append(peaks + 0.15 * rng.standard_normal(energy_loss.size))
                label.append(name)
                group.append(f"{name}-{number}")
    path = tmp_path_factory.mktemp("table") / "table.npz"
    np.savez(path, spectra=np.array(spectra), energy_loss=energy_loss, label=np.array(label), group=np.array(group))
    return path


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A page of a headless browser; the test is skipped where there is none."""
    from tests.browser import CHROMIUM, browsing

    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with browsing(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory):
    """The directory of a small model of FeO and Fe3O4 for the oxygen K edge; copy it before changing it."""
    from eelsflow.executors import LoopExecutor
    from eelsflow.models.bundle import ModelBundle
    from eelsflow.models.fitting import fit_model
    from eelsflow.models.spec import resolve_model
    from eelsflow.preprocess.features import FeatureTransform
    from eelsflow.preprocess.presets import resolve_preset
    from eelsflow.preprocess.shapes import to_shapes
    from eelsflow.unmixing.references import References

    rng = np.random.default_rng(8)
    edge, preset = SHIPPED["O_K"], resolve_preset("paper")
    energy_loss = 513.05 + 0.1 * np.arange(540)
    label = np.repeat(["FeO", "Fe3O4"], 30)
    position = np.where(label == "FeO", 538.0, 540.0)
    wide = np.exp(-(((energy_loss - position[:, np.newaxis]) / 3) ** 2)) + 0.05 * rng.standard_normal((60, 540))
    wide = wide.astype(np.float32)
    transform = FeatureTransform.fit(wide, energy_loss, edge=edge, preset=preset)
    fold = np.arange(60) % 3
    folds = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(3)]
    fitted = fit_model(
        resolve_model("svm-sgd"),
        transform.apply(wide),
        label,
        folds=folds,
        validation=folds[0],
        seed=0,
        executor=LoopExecutor(),
        scratch=tmp_path_factory.mktemp("scratch"),
        epochs=1,
        batch_size=16,
        patience=1,
    )
    directory = tmp_path_factory.mktemp("model")
    shapes = to_shapes(wide, None, transform.axis, edge)
    references = References.fit(shapes, label, np.repeat([f"group-{number}" for number in range(12)], 5))
    ModelBundle("svm-sgd", edge, preset, transform, fitted.classifier, references).save(directory)
    return directory


@pytest.fixture
def table_study(labelled_table, tmp_path):
    """Write a study file over the table; keywords change its keys."""

    def write(**changes):
        content = {
            "name": "manganese",
            "edge": {
                "name": "Mn_placed",
                "reference_energy": 710.0,
                "elnes_window": [700.0, 730.0],
                "pre_edge_window": [690.0, 698.0],
            },
            "data": {"spectra": str(labelled_table)},
            "split": {"by": ["group", "pixel"], "folds": 3, "seeds": 2},
            "grids": "small",
            "models": ["svm-linear", "svm-rbf", "svm-sgd"],
            "robustness": {"shift_ev": [-4, 4, 2], "noise_sigma": [0, 0.3, 0.15]},
            **changes,
        }
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.fixture
def eelsflow(monkeypatch, capsys):
    """Run a command; return exit status, standard output and standard error."""
    from eelsflow import cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["eelsflow", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        printed = capsys.readouterr()
        return exit_.value.code or 0, printed.out, printed.err

    return run


@pytest.fixture(scope="session")
def simulated_files(tmp_path_factory):
    """The directory of six small simulated acquisitions, two of either oxide and two mixed with their truth."""
    from eelsflow.simulator import PRESETS, simulate_directory
    from eelsflow.simulator.acquisition import AxisParameters

    directory = tmp_path_factory.mktemp("simulated")
    preset = PRESETS["paper"].model_copy(update={"axis": AxisParameters(start=485.0, n_channels=400)})
    simulate_directory(directory, n_acquisitions=6, seed=3, shape=(16, 16), preset=preset)
    return directory


@pytest.fixture
def manifest_study(simulated_files, tmp_path):
    """Write a study file over a copy of the simulated acquisitions, without those of some rows; keywords change keys.

    The copy is ``tmp_path / "files"``, to be damaged at will.
    """
    files = shutil.copytree(simulated_files, tmp_path / "files")
    header, *rows = (files / "manifest.csv").read_text().splitlines()

    def write(*, without=(), **changes):
        kept = [row for row in rows if row.partition(",")[0] not in without]
        (files / "manifest.csv").write_text("\n".join([header, *kept]) + "\n")
        content = {
            "name": "cubes",
            "edge": "O_K",
            "classes": ["FeO", "Fe3O4"],
            "data": {"manifest": str(files / "manifest.csv")},
            "preprocess": {"name": "nominal", "steps": ["vacuum_mask", "background", "rebin", "normalize"]},
            "models": ["svm-sgd"],
            "split": {"by": ["group", "pixel"], "folds": 2, "seeds": 1},
            "robustness": {"shift_ev": [-5, 5, 5], "noise_sigma": [0, 0.3, 0.15]},
            **changes,
        }
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write
