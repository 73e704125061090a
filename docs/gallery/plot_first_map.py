"""
A notebook of fifteen lines
===========================

From a file to a map, on to HyperSpy and back, equal to the bit. The model is trained on simulated acquisitions, so
nothing has to be labelled.

Where the folder of recorded spectra is at hand, the file is ``oxide_spectrum_image.dm3``, an oxide of titanium and
lanthanum (from pycroscopy/SciFiDatasets). It shows oxygen K and holds *no* iron: the map must say that its spectra
are unlike the training, and hatch them as unknown. Elsewhere the file is a simulated field with a sharp boundary.
"""

import os
import tempfile
from pathlib import Path

import eelsflow

os.environ["EELSFLOW_HOME"] = str(folder := Path(tempfile.mkdtemp()))  # a toy model: nobody's default
file = Path(os.environ.get("EELSFLOW_DATA", "."), "oxide_spectrum_image.dm3")
scan = file if file.exists() else eelsflow.simulate(folder, preset="wide").with_name("field-005-interface.zarr")

# %%
# Prepare it: spikes, axis, background, specimen, and what neighbours lend. `eelsflow.classify` does this by itself;
# here it is to look at the mean spectrum.

eelsflow.prepare(scan, edge="O_K")["intensity"].mean(("y", "x")).plot()

# %%
# Train on a simulated study, in its quick form.

study = "{name: one, edge: O_K, classes: [FeO, Fe3O4], models: mlls, data: {simulate: {acquisitions: 12, pixels: 16}}}"
(folder / "study.yaml").write_text(study)
eelsflow.run_study(folder / "study.yaml", folder / "results", runner="loop", quick=True)

# %%
# Map, and keep it: ``map/index.html`` and ``map/map.html`` are pages.

# sphinx_gallery_thumbnail_number = 2

found = eelsflow.classify(scan, model=folder / "results")
found.save(folder / "map")
found.plot()

# %%
# To HyperSpy, a signal a layer, and back.

assert eelsflow.from_hyperspy(eelsflow.to_hyperspy(found)).dataset.identical(found.dataset)
