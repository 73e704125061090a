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
        If the base names no module, or its code fails.
    MissingDependencyError
        If it cannot be imported.
    """
    _, _, path = base.partition(":")
    module = path.rpartition(".")[0]
    if not module or not all(part.isidentifier() for part in path.split(".")):
        raise DataSetError(f"{base!r} names nothing that could be imported; write package.module.name behind the colon")
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{base}: {module} cannot be imported ({error}); install it, add its folder to PYTHONPATH, or correct the "
            "name"
        ) from error
    except Exception as error:  # whatever the code of somebody else raises
        raise DataSetError(
            f"{base}: {module} fails when it is imported ({type(error).__name__}: {' '.join(str(error).split())}); "
            "mend it first"
        ) from error


def import_named(base: str) -> Any:
    """Return what a base names; None if its module has no such name. Raises as `import_module_of`."""
    return getattr(import_module_of(base), base.rpartition(".")[2], None)


def source_digest(base: str) -> str:
    """Return a digest of the code behind a base, because other code fits another model.

    It is that of the module named and of the one in which the object was written; of packages that are not installed,
    all files. Raises as `import_module_of`.
    """
    module, named = import_module_of(base), import_named(base)
    files: set[Path] = set()
    for source in (module, named):
        try:
            found = inspect.getsourcefile(source)
        except TypeError:  # compiled, or made by a call
            continue
        if found is None:
            continue
        path = Path(found).resolve()
        files.add(path)
        package = inspect.getmodule(source)
        depth = package.__name__.count(".") if package is not None else 0
        if depth and not {"site-packages", "dist-packages"} & set(path.parts):
            files.update(path.parents[depth - 1].rglob("*.py"))
    return digest_of("source", base, [file.read_bytes().hex() for file in sorted(files)])


def trusted_packages() -> tuple[str, ...]:
    """Return the packages whose code a stored model may run, as the user names them in the environment."""
    return tuple(name.strip() for name in os.environ.get(TRUST, "").split(",") if name.strip())
