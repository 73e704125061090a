"""
Presets on one phase and on two
===============================

What a preset does to spectra shows before any model is trained. Two simulated cubes, of FeO and of Fe3O4, give the
two shapes. Every pixel of two other cubes, one of Fe3O4 alone and one of two phases, is then fitted as a mixture of
them, by least squares.

*One microscope, one draw*: for figures of many fields see the table in the handbook, under presets.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from scipy.stats import spearmanr

import eelsflow

folder = Path(tempfile.mkdtemp())
eelsflow.simulate(folder, acquisitions=5, seed=11, pixels=32)
names = {
    "FeO": "cubes-000-FeO",
    "Fe3O4": "cubes-001-Fe3O4",
    "one": "cubes-003-Fe3O4",
    "two": "cubes-004-core-shell",
}


def vectors(name, preset):
    """Spectra of the fine structure, in units of their area: (y, x, channels), NaN without specimen."""
    product = eelsflow.prepare(folder / f"{name}.zarr", edge="O_K", preset=preset)
    kind = "gathered" if "gathered" in product else "intensity"
    spectra = product[kind].sel(energy_loss=slice(525, 555))
    return (spectra / spectra.mean("energy_loss")).where(~product["vacuum_mask"])


def fraction(spectra, iron_oxide, magnetite):
    """Share of FeO in every pixel, by least squares between two shapes."""
    difference = (iron_oxide - magnetite).values
    return ((spectra - magnetite).values @ difference) / (difference @ difference)


# %%
# Above the cube of one phase, below that of two. Look at what is *inside* a field: ``paper-raw`` leaves all the noise;
# ``paper`` takes components of the whole image, gives the pure cube one value and flattens the other; ``recommended``
# averages neighbours that look alike, and follows the truth best here. The *level* is wrong with all of them, since
# this cube's own shape is not quite that of the other two: that is why maps adapt their references to the field.

truth = xr.open_zarr(folder / "cubes-004-core-shell.truth.zarr", consolidated=False)
true = truth["phase_fraction"].sel(phase="FeO").where(~truth["vacuum"]).values


def spread(values):
    """Half the range that holds the middle two thirds of the pixels."""
    low, high = np.nanpercentile(values, [16, 84])
    return (high - low) / 2


def likeness(found):
    """Rank correlation with the true fraction over the specimen."""
    both = np.isfinite(found) & np.isfinite(true)
    return spearmanr(found[both], true[both]).statistic


figure, axes = plt.subplots(2, 4, figsize=(8, 4.2), layout="constrained")
pictures = [(axes[1, 0], true, "truth")]
axes[0, 0].set_axis_off()
for column, preset in enumerate(("paper-raw", "paper", "recommended"), start=1):
    shapes = [vectors(names[phase], preset).mean(("y", "x")) for phase in ("FeO", "Fe3O4")]
    one, two = (fraction(vectors(names[field], preset), *shapes) for field in ("one", "two"))
    pictures.append((axes[0, column], one, f"{preset}\nspread {spread(one):.2f}"))
    pictures.append((axes[1, column], two, f"rank correlation {likeness(two):.2f}"))
for axis, values, title in pictures:
    picture = axis.imshow(values, vmin=0, vmax=1)
    axis.set_title(title, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])
figure.colorbar(picture, ax=axes, label="fraction of FeO", shrink=0.7)
plt.show()
