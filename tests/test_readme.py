"""What the documents tell a person to type exists: parsed from them, so that none of it can rot unseen."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from eelsflow import cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "deployments" / "README.md",
    *sorted(path for path in ROOT.glob("docs/**/*.md") if not {"_build", "generated"} & set(path.parts)),
]
PROGRAMS = {"eelsflow": "eelsflow", ".venv/bin/eelsflow": "eelsflow", "make": "make"}


class Shown(NamedTuple):
    """A command as a document shows it; `whole` in a code block, where nothing that it needs may be left out."""

    program: str
    arguments: list[str]
    whole: bool

    def __str__(self) -> str:
        return shlex.join([self.program, *self.arguments])


def find_commands(text: str) -> Iterator[Shown]:
    """Find the commands in code blocks (indented by four spaces, or fenced) and in code within sentences."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^ {4}(\S.*)$", text, flags=re.MULTILINE) + "".join(fenced).splitlines()
    for code, whole in [
        *((line, True) for line in blocks),
        *((code, False) for code in re.findall(r"`([^`\n]+)`", text)),
    ]:
        first = code.split(maxsplit=1)[:1]
        if first and first[0] in PROGRAMS:
            words = takewhile(lambda word: word not in {">", "|", "&&"}, shlex.split(code, comments=True))
            yield Shown(PROGRAMS[first[0]], list(words)[1:], whole)


def exit_status(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return what the command would exit with, were there nothing to do: arguments are parsed, nothing is run."""
    if shown.program == "make":
        return subprocess.run(["make", "--dry-run", *shown.arguments], cwd=ROOT, capture_output=True).returncode
    group = typer.main.get_command(cli.app)
    for command in group.commands.values():
        monkeypatch.setattr(command, "callback", lambda **values: None)
        for parameter in command.params if not shown.whole else []:
            monkeypatch.setattr(parameter, "required", False)
    with pytest.raises(SystemExit) as exit_:
        group.main(shown.arguments or ["--help"], prog_name="eelsflow")
    return exit_.value.code or 0


README, *OTHERS = (list(find_commands(path.read_text())) for path in DOCUMENTS)


@pytest.mark.parametrize("shown", [*README, *(shown for found in OTHERS for shown in found)], ids=str)
def test_command_of_a_document_exists_with_its_options(shown, monkeypatch):
    assert exit_status(shown, monkeypatch) == 0


def test_commands_are_found_in_the_readme():
    assert {(shown.program, shown.whole) for shown in README} >= {
        ("eelsflow", True),
        ("eelsflow", False),
        ("make", True),
    }


@pytest.mark.parametrize(
    "code",
    [
        "make no-such-target",
        "eelsflow no-such-command",
        "eelsflow study study.yaml --no-such-option",
        "eelsflow simulate acquisitions --seed none > log",
        "eelsflow classify new/*.dm3 --out maps",
        ".venv/bin/eelsflow info  # without a file",
    ],
)
def test_command_that_does_not_exist_is_noticed(code, monkeypatch):
    for block in (f"    {code}\n", f"```sh\n{code}\n```\n"):
        (shown,) = find_commands(f"Type\n\n{block}\nand wait.\n")
        assert exit_status(shown, monkeypatch) == 2
