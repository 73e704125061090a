"""Saved models whose bytes follow from what they hold: no times and no addresses of objects in memory.

Two runs of one study then leave the same files, and whether two models are the same can be seen from their digests.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time of every member: the first that a zip archive can hold."""


def dump_skops(content: Mapping[str, Any], path: Path) -> None:
    """Write a .skops file; `skops.io.load` reads it.

    skops names arrays, and tells which of them are one, by their address in memory; here they are numbered.
    """
    import skops.io

    with zipfile.ZipFile(io.BytesIO(skops.io.dumps(dict(content)))) as archive:
        schema = json.loads(archive.read("schema.json"))
        numbers = _Numbers()
        numbers.apply(schema)
        members = {numbers.file(name): archive.read(name) for name in archive.namelist() if name != "schema.json"}
    write_archive(path, {**dict(sorted(members.items())), "schema.json": json.dumps(schema, indent=1).encode()})


def strip_keras(path: Path) -> None:
    """Take the time of its writing out of a .keras file, and addresses in memory, which say what its layers share."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in sorted(archive.namelist())}
    metadata = json.loads(members["metadata.json"])
    metadata.pop("date_saved", None)
    config = json.loads(members["config.json"])
    _Numbers().apply(config)
    changed = {"metadata.json": metadata, "config.json": config}
    write_archive(path, members | {name: json.dumps(value).encode() for name, value in changed.items()})


def write_archive(path: Path, members: Mapping[str, bytes]) -> None:
    """Write a zip archive without times, uncompressed: arrays of models hardly get smaller."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, date_time=EPOCH), content)


class _Numbers:
    """Numbers in the place of addresses, in the order in which a schema of skops or Keras meets them."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self._next = 0

    def apply(self, node: Any) -> None:
        if isinstance(node, list):
            for item in node:
                self.apply(item)
        elif isinstance(node, dict):
            for key, value in node.items():
                if key == "__id__" and isinstance(value, int):
                    # Whether two equal numbers or texts are one object is Python's affair, and does not matter.
                    node[key] = self._new() if node.get("is_json") else self._number(str(value))
                elif key == "shared_object_id" and isinstance(value, int):
                    node[key] = self._number(str(value))
                elif key == "file" and isinstance(value, str):
                    node[key] = self.file(value)
                else:
                    self.apply(value)

    def file(self, name: str) -> str:
        """Return the name of a member, which is an address and an ending."""
        return re.sub(r"^\d+", lambda found: f"{self._number(found[0]):06d}", name)

    def _number(self, address: str) -> int:
        if address not in self._known:
            self._known[address] = self._new()
        return self._known[address]

    def _new(self) -> int:
        self._next += 1
        return self._next
