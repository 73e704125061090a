"""Acquisitions that cannot be used: set aside with the reason, so that one of sixty does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from eelsflow.errors import DataSetError, InputError

Result = TypeVar("Result")


class SetAside(BaseModel):
    """An acquisition that is left out: its path as in the manifest, and the reason in one line."""

    model_config = ConfigDict(frozen=True)

    acquisition: str
    reason: str


def attempt(acquisition: str, work: Callable[[], Result]) -> Result | SetAside:
    """Return what `work` returns, or why the acquisition cannot be used.

    Only an `InputError` sets it aside. A full disk, a missing dependency or a fault of the program is no property of
    the acquisition, and is raised.
    """
    try:
        return work()
    except InputError as error:
        return SetAside(acquisition=acquisition, reason=" ".join(str(error).split()))


def merge(found: Sequence[SetAside]) -> tuple[SetAside, ...]:
    """Return one entry for each acquisition, with all that was found wrong with it."""
    reasons: dict[str, list[str]] = {}
    for one in found:
        reasons.setdefault(one.acquisition, []).append(one.reason)
    return tuple(
        SetAside(acquisition=acquisition, reason="; ".join(dict.fromkeys(texts)))
        for acquisition, texts in reasons.items()
    )


def refuse(found: Sequence[SetAside], *, total: int) -> None:
    """Refuse to go on without acquisitions that cannot be used.

    Raises
    ------
    InputError
        Naming every one with its reason.
    """
    if found:
        raise InputError(
            f"{len(found)} of {total} acquisitions cannot be used, and a strict study is made of all or none: repair "
            f"them, take them out of the manifest, or let them be set aside (leave out --strict){_list(found)}"
        )


@contextmanager
def named_in_refusals(found: Sequence[SetAside], *, total: int) -> Iterator[None]:
    """Let a refusal of what is left name what was set aside before, which may be why too little is left.

    Raises
    ------
    DataSetError
        As raised inside, with the acquisitions that were set aside and the reasons.
    """
    try:
        yield
    except DataSetError as error:
        if not found:
            raise
        raise DataSetError(
            f"{error}\nSet aside before, so that they do not count: {len(found)} of {total} acquisitions; repair them "
            f"if they are what is missing{_list(found)}"
        ) from error


def _list(found: Sequence[SetAside]) -> str:
    return ":" + "".join(f"\n  {one.acquisition}: {one.reason}" for one in found)
