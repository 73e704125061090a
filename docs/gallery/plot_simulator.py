"""
Simulated fields, their truth, and a score
==========================================

The simulator keeps what recorded acquisitions hide: which oxide is in every pixel. So a map can be scored, and so can
you.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import eelsflow

folder = Path(tempfile.mkdtemp())
eelsflow.simulate(folder / "fields", acquisitions=9, seed=21, pixels=32, preset="wide", detector="both")
scenes = ["field-008-inclusions", "field-006-gradient", "field-005-interface", "field-004-core-shell"]

# %%
# A model from fields that have nothing in common with these; the study is that of the first example, so nothing of it
# is computed twice.

study = "{name: one, edge: O_K, classes: [FeO, Fe3O4], models: mlls, data: {simulate: {acquisitions: 12, pixels: 16}}}"
(folder / "study.yaml").write_text(study)
eelsflow.run_study(folder / "study.yaml", folder / "results", quick=True)

# %%
# Truth above, map below. A pixel counts to the phase that makes up more than .55 of it; what is nearer to one half is
# a matter of taste. Contrast inside a field is known much better than its level: with so few fields to learn from, a
# field may show every inclusion and still be called one phase throughout. Only a score against a truth tells you
# that.

figure, axes = plt.subplots(2, 4, figsize=(8, 4.4), layout="constrained")
for (above, below), name in zip(axes.T, scenes, strict=True):
    truth = xr.open_zarr(folder / "fields" / f"{name}.truth.zarr", consolidated=False)
    true = truth["phase_fraction"].sel(phase="Fe3O4").where(~truth["vacuum"]).values
    found = eelsflow.classify(folder / "fields" / f"{name}.zarr", model=folder / "results")
    magnetite = found.classes.index("Fe3O4")
    index = found.dataset["class_index"].values
    counted = (index >= 0) & (np.abs(true - 0.5) > 0.05)
    right = (index == magnetite)[counted] == (true > 0.5)[counted]
    above.imshow(true, vmin=0, vmax=1)
    above.set_title(name.split("-", 2)[2], fontsize=9)
    picture = below.imshow(found.dataset["fraction"].values[..., magnetite], vmin=0, vmax=1)
    below.set_title(f"{right.mean():.0%} of the pixels right", fontsize=9)
for axis in axes.flat:
    axis.set_xticks([])
    axis.set_yticks([])
figure.colorbar(picture, ax=axes, label="fraction of Fe3O4", shrink=0.7)
plt.show()

# %%
# One map whole, as `eelsflow classify` draws it.

found.plot()
