"""Oxidation-state maps from electron energy-loss spectrum images, with the evidence behind them.

The names below are the public ones; everything else may change from one release to the next. Importing this package is
quick on purpose: what a name needs is loaded when the name is asked for, and TensorFlow, MLflow, matplotlib, HyperSpy
and distributed only where they are used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eelsflow.maps import Map, classify
    from eelsflow.preparation import prepare
    from eelsflow.public import (
        explain,
        from_hyperspy,
        grid_search,
        info,
        load_model,
        perturb,
        plan_dose,
        read,
        run_study,
        simulate,
        to_hyperspy,
    )
    from eelsflow.study.config import load_study

__version__ = "0.1.0"

__all__ = [
    "Map",
    "classify",
    "explain",
    "from_hyperspy",
    "grid_search",
    "info",
    "load_model",
    "load_study",
    "perturb",
    "plan_dose",
    "prepare",
    "read",
    "run_study",
    "simulate",
    "to_hyperspy",
]

_ELSEWHERE = {
    "Map": "eelsflow.maps",
    "classify": "eelsflow.maps",
    "prepare": "eelsflow.preparation",
    "load_study": "eelsflow.study.config",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_ELSEWHERE.get(name, "eelsflow.public")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
