"""What a study names by where it is imported from: ``sklearn:package.Class``, ``keras:package.function``."""

from __future__ import annotations

import importlib
import inspect
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from eelsflow.digest import digest_of
from eelsflow.errors import DataSetError, MissingDependencyError

TRUST = "EELSFLOW_TRUST"
"""Environment variable: packages, separated by commas, of which a stored model may run code."""


def import_module_of(base: str) -> ModuleType:
    """Import the module in which a base lies.

    Raises
    ------
    DataSetError
        If the base names no module.
    MissingDependencyError
        If it cannot be imported.
    """
    _, _, path = base.partition(":")
    module, _, name = path.rpartition(".")
    if not module or not name:
        raise DataSetError(f"{base!r} names nothing that could be imported; write package.module.name behind the colon")
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{base}: {module} cannot be imported ({error}); install it, add its folder to PYTHONPATH, or correct the "
            "name"
        ) from error


def import_named(base: str) -> Any:
    """Return what a base names; None if its module has no such name. Raises as `import_module_of`."""
    return getattr(import_module_of(base), base.rpartition(".")[2], None)


def source_digest(base: str) -> str:
    """Return a digest of the source of the module in which a base lies, because other code fits another model.

    Raises as `import_module_of`.
    """
    module = import_module_of(base)
    file = inspect.getsourcefile(module) if getattr(module, "__file__", None) else None
    return digest_of("source", base, Path(file).read_bytes().hex() if file else "compiled")


def trusted_packages() -> tuple[str, ...]:
    """Return the packages whose code a stored model may run, as the user names them in the environment."""
    return tuple(name.strip() for name in os.environ.get(TRUST, "").split(",") if name.strip())
