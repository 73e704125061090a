"""The image is of what is in the checkout, installed as `make` does."""

import re
import shlex
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PIP = "-m pip install --no-deps --require-hashes --requirement requirements.lock"


def read_steps(text: str) -> list[tuple[str, str]]:
    """Return instructions with their arguments, in order."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(step.split(maxsplit=1)[0], step.split(maxsplit=1)[1]) for step in joined.splitlines() if step.strip()]


TEXT = (ROOT / "deployments" / "Containerfile").read_text()
STEPS = read_steps(TEXT)


def arguments(instruction: str) -> list[str]:
    return [rest for name, rest in STEPS if name == instruction]


def without_choices(command: str) -> str:
    return re.sub(r" --(quiet|no-compile|no-cache-dir)\b", "", command)


def test_what_is_copied_exists() -> None:
    stages = {rest.partition(" AS ")[2] for rest in arguments("FROM")}
    copied = [shlex.split(rest) for rest in arguments("COPY")]
    assert {word for words in copied for word in words[:1] if word.startswith("--from=")} == {"--from=build"}
    assert "build" in stages
    sources = {source for words in copied if not words[0].startswith("--") for source in words[:-1]}
    assert {"eelsflow", "flows", "tasks", "deployments", "pyproject.toml", "requirements.lock"} <= sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert sources.isdisjoint(ignored)


def test_it_installs_as_make_does() -> None:
    makefile, image = without_choices((ROOT / "Makefile").read_text()), without_choices(" ".join(arguments("RUN")))
    commands = [PIP, "-m pip install --no-deps --no-build-isolation --editable .", "-m eelsflow.warm_up"]
    for command in commands:
        assert command in makefile
        assert command in image


def test_base_and_tensorflow_are_pinned_and_of_the_versions_that_are_tested() -> None:
    base = next(rest.removeprefix("BASE=") for rest in arguments("ARG") if rest.startswith("BASE="))
    assert re.fullmatch(r"docker\.io/library/python:3\.11\.\d+-slim-\w+", base)
    (shown,) = re.findall(r"tensorflow\[and-cuda\]==([\d.]+)", TEXT)
    assert f"tensorflow-cpu=={shown} " in (ROOT / "requirements.lock").read_text()


def test_it_starts_eelsflow_as_the_user_whom_the_manifests_name() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    (entrypoint,) = arguments("ENTRYPOINT")
    assert [name for name in scripts if entrypoint == f'["{name}"]']
    (user,) = arguments("USER")
    manifests = (ROOT / "deployments" / "kubernetes").glob("*.yaml")
    users = {number for path in manifests for number in re.findall(r"runAsUser: (\d+)", path.read_text())}
    assert users == {user}
