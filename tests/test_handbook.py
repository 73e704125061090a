"""What the handbook shows is so: its tables are complete, its edge and its step work, its links lead on.

What its pages tell to type is typed in `tests.test_handbook_commands`.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eelsflow.models.estimators import find_class
from eelsflow.models.networks import build_network
from eelsflow.models.spec import BASES, NAMED
from eelsflow.preparation import prepare
from eelsflow.preprocess.presets import PRESETS, Step
from eelsflow.study.config import load_study
from tests.test_readme import DOCUMENTS

DOCS = Path(__file__).parents[1] / "docs"
NAME = re.compile(r"# (\S+\.(?:py|yaml))\n")


def find_blocks(page: Path) -> list[tuple[str, str]]:
    """Return language and content of the code blocks of a page, in their order."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "offset"), [("tio2_linescan_core_loss.dm3", -5.70), ("oxide_spectrum_image.dm3", 2.69)]
)
def test_edge_of_the_handbook_is_found_in_recorded_spectra(name, offset, real_data, tmp_path):
    (study,) = (text for _, text in find_blocks(DOCS / "edges.md") if text.startswith("# titanium.yaml"))
    (tmp_path / "titanium.yaml").write_text(study)
    prepared = prepare(real_data / name, edge=load_study(tmp_path / "titanium.yaml").edge)
    assert prepared.attrs["energy_offset"] == pytest.approx(offset, abs=0.02)


def test_step_of_the_handbook_can_be_put_into_the_program(tmp_path):
    blocks = find_blocks(DOCS / "steps.md")
    (diff,) = (content for kind, content in blocks if kind == "diff")
    (after,) = (content for _, content in blocks if content.startswith("# after-the-step.py"))
    shutil.copytree(DOCS.parent / "eelsflow", tmp_path / "eelsflow", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=diff, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [sys.executable, "-c", after], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_every_step_and_every_preset_is_on_its_page():
    named = re.findall(r"^\| `(\w+)` \|", (DOCS / "steps.md").read_text(), flags=re.MULTILINE)
    kinds = [kind.model_fields["step"].default for kind in Step.__origin__.__args__]
    assert sorted(named) == sorted(kinds)
    page = (DOCS / "presets.md").read_text()
    assert [name for name in PRESETS if f"`{name}`" not in page] == []


def test_every_model_is_on_its_page_and_those_of_others_can_be_built(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    page = DOCS / "models.md"
    named = re.findall(r"^\| (`[^|]*`) \|", page.read_text(), flags=re.MULTILINE)
    assert {name for cell in named for name in re.findall(r"`([^`]+)`", cell)} == {*BASES, *NAMED}
    for _, content in find_blocks(page):
        if name := NAME.match(content):
            (tmp_path / name[1]).write_text(content)
    _, boosted, wide = load_study(tmp_path / "mine.yaml").models
    find_class(boosted.base)
    assert build_network(wide.base, 300, 2, {"units": 32}).output_shape == (None, 2)


def test_notebook_of_fifteen_lines_has_no_more():
    tree = ast.parse((DOCS / "gallery" / "plot_first_map.py").read_text())
    assert sum(statement.end_lineno - statement.lineno + 1 for statement in tree.body[1:]) <= 15


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_links_of_a_document_lead_to_files_of_the_repository(document):
    """Where they lead in the built pages is Sphinx's to check."""
    links = re.findall(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.slow
def test_the_first_script_of_the_gallery_takes_a_dm4_file(tmp_path, real_data):
    """The page shows a larger image, which is a DM3; this one has 2 x 2 pixels."""
    script = (DOCS / "gallery" / "plot_first_map.py").read_text()
    assert "oxide_spectrum_image.dm3" in script
    (tmp_path / "first.py").write_text(script.replace("oxide_spectrum_image.dm3", "tiny_spectrum_image.dm4"))
    environment = os.environ | {"EELSFLOW_DATA": str(real_data), "MPLBACKEND": "Agg", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "first.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (summary,) = tmp_path.glob("*/map/summary.json")
    assert json.loads(summary.read_text())["source"] == "tiny_spectrum_image.dm4"
