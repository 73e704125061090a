"""From a file, or a model alone, to its explanation on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from eelsflow.explanation.contributions import explain
from eelsflow.explanation.result import Explanation
from eelsflow.maps.judge import say_uncalibrated
from eelsflow.maps.mapping import look_at, prepare_suitably
from eelsflow.maps.registry import find_model, model_for_uncalibrated
from eelsflow.models.bundle import ModelBundle
from eelsflow.preprocess.shapes import BAND_WIDTH
from eelsflow.spectrum_image import energy_axis
from eelsflow.store import make_directory


def explain_file(
    path: Path | None,
    *,
    models: Sequence[str],
    out: Path,
    pixels: Sequence[tuple[int, int]] | None = None,
    classes: tuple[str, str] | None = None,
    width: float = BAND_WIDTH,
    low_loss: Path | None = None,
) -> Explanation:
    """Explain how an acquisition is decided, or a model alone, and write what was found.

    Parameters
    ----------
    path
        A readable acquisition; None explains the model by its classes' mean spectra.
    models
        What `eelsflow.maps.find_model` takes; further ones are the same model trained with other seeds, and prepare
        acquisitions as the first does.
    out
        ``explanation.json``, ``explanation.png`` and ``explanation.svg`` are written into it.
    pixels, classes, width
        As `eelsflow.explanation.explain` takes them.
    low_loss
        The file of the low loss of the same scan; by default what the acquisition's own file holds.

    Raises
    ------
    EelsflowError
        If the file, a model or what was asked for cannot be used; nothing is written then.
    """
    if path is None:
        bundle, *others = [ModelBundle.load(find_model(name)) for name in models]
        explanation = explain(bundle, classes=classes, width=width, models=others)
        explanation.save(make_directory(out))
        return explanation
    given = look_at(path, model=models[0], low_loss=low_loss)
    axis = energy_axis(given.image)
    further = [find_model(name, axis=axis) for name in models[1:]]
    make_directory(out)
    with tempfile.TemporaryDirectory(dir=out, prefix=".explain-") as work:
        suited, prepared = prepare_suitably(given, Path(work))
        if suited is not given:
            further = [model_for_uncalibrated(one) or one for one in further]
        bundles = [ModelBundle.load(one) for one in further]
        said = say_uncalibrated(suited.bundle)
        explanation = explain(suited.bundle, prepared, pixels=pixels, classes=classes, width=width, models=bundles)
    if said:
        explanation.dataset.attrs["note"] = f"Warning: {said}. {explanation.dataset.attrs['note']}".strip()
    explanation.save(out)
    return explanation
