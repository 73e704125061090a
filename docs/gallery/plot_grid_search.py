"""
A grid search beside scikit-learn's
===================================

`eelsflow.grid_search` finds what ``GridSearchCV(SVC(...))`` finds, cell by cell, by a solver that shares the work of
the whole grid. On a table this small it hardly matters; on one of the paper's size it was 55 times as fast
(docs/benchmarks).
"""

import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

import eelsflow

random = np.random.default_rng(4)
energy_loss = np.arange(525, 555, 0.5)
labels = np.repeat(["FeO", "Fe3O4"], 150)
position = np.where(labels == "FeO", 540.0, 539.2) + 0.5 * random.standard_normal(300)
spectra = np.exp(-(((energy_loss - position[:, np.newaxis]) / 3) ** 2)) + 0.15 * random.standard_normal((300, 60))
grid = {"C": list(np.logspace(-1, 4, 6)), "gamma": list(np.logspace(-4, 0, 5))}

eelsflow.grid_search(spectra, labels, grid=grid, cv=5)  # loads what is compiled
began = time.perf_counter()
ours = eelsflow.grid_search(spectra, labels, grid=grid, cv=5)
between = time.perf_counter()
theirs = GridSearchCV(SVC(class_weight="balanced"), grid, cv=5).fit(spectra, labels)
print(f"eelsflow {between - began:.2f} s, scikit-learn {time.perf_counter() - between:.2f} s")

# %%
# Both tables: the mean accuracy over the folds.

one = ours.results_["accuracy"].mean("fold").transpose("C", "gamma").values
other = theirs.cv_results_["mean_test_score"].reshape(one.shape)
assert np.abs(one - other).max() < 0.004  # one spectrum of 300 that lies on the boundary
print("best", {name: float(value) for name, value in ours.best_params_.items()})
print("best", {name: float(value) for name, value in theirs.best_params_.items()})
figure, axes = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
for axis, table, title in zip(axes, (one, other), ("eelsflow", "scikit-learn"), strict=True):
    picture = axis.imshow(table, vmin=0.5, vmax=1, origin="lower")
    axis.set_xticks(range(5), [f"{gamma:g}" for gamma in grid["gamma"]])
    axis.set_yticks(range(6), [f"{C:g}" for C in grid["C"]])
    axis.set(title=title, xlabel="gamma", ylabel="C")
figure.colorbar(picture, ax=axes, label="accuracy")
plt.show()
