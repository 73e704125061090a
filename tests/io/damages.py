"""Random damage to files and folders, as bad disks and broken copies do: each seed always the same."""

import shutil
from pathlib import Path

import numpy as np

from eelsflow.digest import members


def damage_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """Change single bytes, zero a range, cut the end or drop a range."""
    broken = bytearray(content)
    match int(rng.integers(4)):
        case 0:  # most of them in the header
            for _ in range(int(rng.integers(1, 6))):
                reach = len(broken) if rng.random() < 0.5 else min(len(broken), 600)
                broken[int(rng.integers(reach))] = int(rng.integers(256))
        case 1:
            start = int(rng.integers(len(broken)))
            broken[start : start + 64] = bytes(len(broken[start : start + 64]))
        case 2:
            del broken[int(rng.integers(len(broken))) :]
        case _:
            start = int(rng.integers(len(broken)))
            del broken[start : start + int(rng.integers(1, 64))]
    return bytes(broken)


def write_damaged(whole: Path, seed: int, folder: Path) -> Path:
    """Write a copy with one of its files (`members`) damaged or, where there are several, removed."""
    rng = np.random.default_rng(seed)
    path = folder / f"{seed}{whole.suffix}"
    if whole.is_dir():
        shutil.copytree(whole, path)
    else:
        for member in members(whole):
            shutil.copyfile(member, path.with_suffix(member.suffix))
    copies = members(path)
    chosen = copies[int(rng.integers(len(copies)))]
    if len(copies) > 1 and rng.random() < 0.15:
        chosen.unlink()
    else:
        chosen.write_bytes(damage_bytes(chosen.read_bytes(), rng))
    return path


def remove(path: Path) -> None:
    """Remove what `write_damaged` wrote."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        for member in path.parent.glob(f"{path.stem}.*"):
            member.unlink()
