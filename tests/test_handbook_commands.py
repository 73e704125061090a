"""What README and handbook tell a person to type is typed, in the page's order, or stands here with what runs it.

Commands in lines of their own, and those within sentences that are whole: with a file and an option.

Four things are added to what is shown: a study is run in its small size by the plain loop, shipped study files have one
repetition and few epochs, a study file that was written by `--init` is cut to two models and one repetition, and what
serves until Ctrl-C gets Ctrl-C once it says so.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml

from eelsflow.dataset.manifest import read_rows
from eelsflow.io.read import read_spectrum_image
from eelsflow.io.zarr_store import open_dataset
from eelsflow.maps.registry import register_model
from eelsflow.models.bundle import ModelBundle
from eelsflow.models.spec import resolve_model
from eelsflow.preprocess.presets import resolve_preset
from eelsflow.simulator import PRESETS as SIMULATOR
from eelsflow.simulator import LowLossRecording, simulate_acquisition, simulate_directory
from eelsflow.study.config import load_study
from tests.io.dm_files import write_dm
from tests.test_handbook import NAME
from tests.test_readme import DOCUMENTS, ROOT

ELSEWHERE = {
    # command, by how it begins: the file that runs it, and the words there
    "make install": (".ci/run", "make .venv/.installed"),
    "make demo": (".ci/run", "eelsflow demo"),
    "make docs": (".ci/run", "make docs"),
    "make test": (".ci/run", "make test"),
    "make bench": (".ci/run", "-m benchmarks --quick"),
    "eelsflow study deployments/studies/paper.yaml": (".ci/run", "for study in paper rigorous manganese"),
    "eelsflow study deployments/studies/rigorous.yaml": (".ci/run", "for study in paper rigorous manganese"),
    "eelsflow study deployments/studies/manganese.yaml": (".ci/run", "for study in paper rigorous manganese"),
    "eelsflow classify lsmo_linescan.hspy": (".ci/run", 'classify "$EELSFLOW_DATA/lsmo_linescan.hspy'),
    "eelsflow up": ("tests/flows/test_up.py", '"up", "--inbox"'),
    "python deployments/check_inbox.py": (".ci/run", "python deployments/check_inbox.py"),
    "python deployments/check_schedule.py": (".ci/run", "python deployments/check_schedule.py"),
    "python -m flows.deploy": ("tests/flows/test_deploy.py", "flows.deploy"),
    "prefect worker start": ("flows/up.py", '"worker", "start"'),
    "dask scheduler": ("tests/flows/test_cluster_network.py", '"-m", "dask"'),
    "dask worker": ("tests/flows/test_cluster_network.py", '"-m", "dask"'),
    "eelsflow study cluster.yaml": ("tests/flows/test_cluster_network.py", "cluster_client("),
    "eelsflow watch s3://": ("deployments/check_inbox.py", "s3://"),
    "deployments/make_certificates.sh": ("tests/flows/test_dask_tls.py", "make_certificates.sh"),
    "sbatch deployments/slurm/study.sbatch": ("tests/flows/test_slurm.py", '"sbatch"'),
    "EELSFLOW_SLURM=1 python -m pytest": ("tests/flows/test_slurm.py", 'environ.get("EELSFLOW_SLURM")'),
}
NOT_HERE = {  # what begins so needs what a test's machine has not
    "source .venv/bin/activate": "the tests run in the environment",
    "kubectl": "a Kubernetes cluster; its manifests are validated by tests/deployments/test_kubernetes.py",
    "podman": "a container engine; tests/deployments/test_containerfile.py reads the file",
    "systemctl": "systemd",
    "loginctl": "systemd",
    "cp deployments/systemd": "systemd",
    "openssl s_client": "another machine",
    "tls=": "it is of `dask scheduler $tls`",
}
PROGRAMS = {"eelsflow", "make", "export", *(begin.split()[0].partition("=")[0] for begin in {**ELSEWHERE, **NOT_HERE})}
HANDBOOK = [page for page in DOCUMENTS if page.parent == ROOT / "docs"]
SECONDS = 400


class Step(NamedTuple):
    """A block of a page: a file to write, Python to run, or a command to type."""

    kind: str
    content: str


def find_steps(text: str) -> Iterator[Step]:
    """Find what a page shows, in its order; commands within sentences where nothing in them stands for another word."""
    blocks = r"^```(?P<kind>\w+)\n(?P<content>.*?)^```|^ {4}(?P<line>\S[^\n]*)$|`(?P<words>eelsflow [^`\n]+)`"
    for found in re.finditer(blocks, text, flags=re.MULTILINE | re.DOTALL):
        line = found["line"] or found["words"]
        if line is None:
            yield Step(found["kind"], found["content"])
        elif re.split(r"[\s=]", line, maxsplit=1)[0] in PROGRAMS:
            command = re.sub(r"\s+#.*", "", line)
            whole = re.match(r"eelsflow \w+ [^-\s]\S* .*-", command) and not re.search(r"\b[A-Z]{3,}\b", command)
            if found["line"] or whole:
                yield Step("command", command)


def commands_of(pages: list[Path]) -> set[str]:
    return {step.content for page in pages for step in find_steps(page.read_text()) if step.kind == "command"}


def begins(command: str, table: dict) -> str | None:
    return next((start for start in table if command.startswith(start)), None)


def as_dm3(image, path: Path) -> None:
    energy_loss = image["energy_loss"].values
    write_dm(path, image.values, start=energy_loss[0], step=float(np.diff(energy_loss)[0]), pixel_nm=2.0)


def smaller(setting: re.Match[str]) -> str:
    return f"{setting[1]}: {3 if setting[1] in ('epochs', 'patience') else 1}"


@pytest.fixture(scope="session")
def a_lab(tmp_path_factory, saved_model) -> Path:
    """A folder as the pages take it for granted: acquisitions, some of known phase, a pair, a model."""
    lab = tmp_path_factory.mktemp("lab")
    small = SIMULATOR["wide"].model_copy(update={"shape": (16, 16)})
    simulate_directory(lab / "simulated", n_acquisitions=12, seed=5, preset=small)
    rows = read_rows(lab / "simulated" / "manifest.csv")
    for folder in ("scans", "new", "inbox"):
        (lab / folder).mkdir()
    lines = ["path,label,group,truth"]
    for number, row in enumerate(rows, 1):
        name = f"cube-{number:02}.dm3"
        as_dm3(read_spectrum_image(row.resolve(row.path)), lab / name)
        truth = ""
        if row.truth and not row.label:
            truth = f"cube-{number:02}.truth.npz"
            layers = open_dataset(row.resolve(row.truth))
            np.savez(
                lab / truth, phase=layers["phase"].values.astype(str), phase_fraction=layers["phase_fraction"].values
            )
        lines.append(f"{name},{row.label},cube-{number:02},{truth}")
        shutil.copy(lab / name, lab / "scans" / name)
    (lab / "manifest.csv").write_text("\n".join(lines) + "\n")
    mixed = next(line.split(",")[3] for line in lines if line.endswith(".npz"))
    shutil.copy(lab / mixed.replace(".truth.npz", ".dm3"), lab / "scan.dm3")
    shutil.copy(lab / mixed, lab / "scan.truth.npz")
    for name in ("cube-01.dm3", "cube-02.dm3"):
        shutil.copy(lab / name, lab / "new" / name)
    shutil.copy(lab / "scan.dm3", lab / "inbox")
    pair = simulate_acquisition(small, 4, low_loss=LowLossRecording())
    as_dm3(pair.image, lab / "core.dm3")
    as_dm3(pair.low_loss, lab / "low.dm3")
    energy_loss = 400 + 0.25 * np.arange(480)
    expected = 4e11 * energy_loss**-3.0
    for position, sigma, height in ((459.5, 1.8, 1000), (464.8, 1.8, 1100)):
        expected = expected + height * np.exp(-0.5 * ((energy_loss - position) / sigma) ** 2)
    counts = np.random.default_rng(0).poisson(np.broadcast_to(expected, (12, 12, 480)))
    write_dm(lab / "titanium.dm3", counts, start=400.0, step=0.25, pixel_nm=2.0)
    shutil.copytree(ROOT / "deployments", lab / "deployments")
    for study in (lab / "deployments" / "studies").glob("*.yaml"):
        study.write_text(re.sub(r"\b(epochs|patience|seeds|copies): \d+", smaller, study.read_text()))
    (lab / "results").mkdir()
    replace(ModelBundle.load(saved_model), preset=resolve_preset("recommended")).save(lab / "results")
    return lab


@pytest.fixture(scope="session")
def computed(tmp_path_factory) -> Path:
    """What studies have computed: several pages run the same one, and each waits for its own outputs alone."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def reader(a_lab, computed, tmp_path, monkeypatch) -> Path:
    """A copy of that folder, to work in."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "store").symlink_to(computed)
    folder = shutil.copytree(a_lab, tmp_path / "lab", symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("EELSFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("BROWSER", "true")  # a program that opens nothing
    register_model(folder / "results", name="svm-sgd", registered="2026-01-01T00:00:00+00:00")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return folder


def serves(command: str) -> bool:
    label = command.startswith("eelsflow label") and not {"--suggest", "--regions"} & set(command.split())
    return label or (command.startswith("eelsflow watch") and "--once" not in command)


def run(command: str) -> None:
    """Type a command; what is expected of it is that it ends well."""
    small = "--runner loop" if "--quick" in command else "--runner loop --quick"
    command = re.sub(r"^eelsflow study (?=.*--out)", f"eelsflow study {small} ", command)
    began = time.monotonic()
    said = []
    with subprocess.Popen(
        ["bash", "-c", f"exec {command}"], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:  # fmt: skip
        watchdog = threading.Timer(SECONDS, os.killpg, (process.pid, signal.SIGKILL))  # what it has started as well
        watchdog.start()
        try:
            for line in process.stdout:
                said.append(line)
                if "Ctrl-C" in line and serves(command):
                    process.send_signal(signal.SIGINT)
            status = process.wait()
        finally:
            watchdog.cancel()
    print(f"$ {command}  ({time.monotonic() - began:.0f} s)", *said, sep="\n")
    if command == "eelsflow study --init > study.yaml":
        study = yaml.safe_load(Path("study.yaml").read_text())
        study |= {"models": study["models"][:2], "preprocess": study["preprocess"][0]}
        study["split"]["seeds"] = 1
        Path("study.yaml").write_text(yaml.safe_dump(study))
    assert status == 0


def is_slow(page: Path) -> bool:
    steps = list(find_steps(page.read_text()))
    return any(step.kind == "command" and step.content.startswith("eelsflow study") for step in steps) or any(
        step.kind == "python" and "run_study(" in step.content for step in steps
    )


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] * is_slow(page), id=f"{page.parent.name}/{page.stem}")
        for page in DOCUMENTS
        if (page in HANDBOOK or (page.name == "README.md" and page.parent in (ROOT, ROOT / "deployments")))
        and list(find_steps(page.read_text()))
    ],
)
def test_what_a_page_shows_works_in_its_order(page, reader, monkeypatch):
    """A block that begins with the name of a file is that file."""
    namespace: dict[str, object] = {}
    in_handbook = commands_of(HANDBOOK) if page not in HANDBOOK else set()  # word for word: typed there
    for number, (kind, content) in enumerate(find_steps(page.read_text())):
        named = NAME.match(content)
        if kind == "command":
            if begins(content, ELSEWHERE) or begins(content, NOT_HERE) or content in in_handbook:
                continue
            if content.startswith("export "):
                for name, value in re.findall(r'(\w+)=("[^"]*"|\S+)', content):
                    monkeypatch.setenv(name, os.path.expandvars(value.strip('"')))
            elif content == "make fuzz":  # a file of it
                one = f"TESTS={ROOT}/tests/preprocess/test_normalize.py"
                run(f"make --directory {ROOT} --old-file .venv/.installed fuzz {one}")
            else:
                run(content)
        elif kind == "text" and content.startswith("path,"):
            (reader / "shown.csv").write_text(content)
            assert read_rows(reader / "shown.csv")
        elif kind == "json":
            json.loads(content)
            (reader / "regions.json").write_text(content)
        elif named:
            (reader / named[1]).write_text(content)
            if kind == "yaml":
                load_study(reader / named[1])
        elif kind == "yaml":
            assert [resolve_model(model) for model in yaml.safe_load(content)["models"]]
        elif kind == "python":
            exec(compile(content, f"{page.name}, block {number}", "exec"), namespace)
        else:
            assert kind in ("toctree", "diff", "text", "eval-rst"), f"{page.name}: a {kind} block without a file's name"


@pytest.mark.parametrize("beginning", [*ELSEWHERE, *NOT_HERE])
def test_what_is_not_typed_here_is_still_shown(beginning):
    assert any(command.startswith(beginning) for command in commands_of(DOCUMENTS))


@pytest.mark.parametrize("command", ELSEWHERE)
def test_what_runs_elsewhere_runs_there(command):
    file, words = ELSEWHERE[command]
    assert words in (ROOT / file).read_text()
