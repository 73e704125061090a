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

folder = Path(tempfile.mkdtemp())
recorded = Path(os.environ.get("EELSFLOW_DATA", "../../../shared/data"), "oxide_spectrum_image.dm3")
simulated = eelsflow.simulate(folder, acquisitions=6, seed=21, preset="wide").with_name("field-005-interface.zarr")
scan = recorded if recorded.exists() else simulated

# %%
# Prepare it: spikes, axis, background, specimen, and what neighbours lend. `eelsflow.classify` does this by itself;
# here it is to look at.

eelsflow.prepare(scan, edge="O_K")["intensity"].mean(("y", "x")).plot()

# %%
# Train on a simulated study, in its quick form.

study = "{name: one, edge: O_K, classes: [FeO, Fe3O4], models: mlls, data: {simulate: {acquisitions: 12, pixels: 16}}}"
(folder / "study.yaml").write_text(study)
eelsflow.run_study(folder / "study.yaml", folder / "results", runner="loop", quick=True)

# %%
# Map.

# sphinx_gallery_thumbnail_number = 2

found = eelsflow.classify(scan, model=folder / "results")
found.plot()

# %%
# To HyperSpy, a signal a layer, and back.

assert eelsflow.from_hyperspy(eelsflow.to_hyperspy(found)).dataset.identical(found.dataset)
