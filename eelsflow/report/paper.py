"""The values of the paper's Tables I and II, to be shown beside a study's own and never asserted.

Source: Roset Tomàs, "Machine learning for iron oxide identification from oxygen K edge in EELS spectra", Tables I
(support vector machines) and II (networks). The paper's spectra are not public: its numbers belong to its data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TRAINED_ON = {"paper": "Clean", "paper-raw": "Raw"}
"""The paper's name for the data set that a preset makes: with PCA denoising, and without."""


@dataclass(frozen=True, slots=True)
class PaperRow:
    """One row of the paper's tables, as printed there; None where the paper prints a dash or no such column."""

    accuracy: str | None
    translation: str | None
    noise: str | None
    best_params: str | None = None
    train_seconds: str | None = None


# Table I does not say which data set; "Clean" is the paper's main one, so it is shown for the preset `paper` alone.
ROWS: dict[tuple[str, str], PaperRow] = {
    ("svm-linear", "paper"): PaperRow(".94", ".55", ".52", "C=1e5", "~5"),
    ("svm-rbf", "paper"): PaperRow(".97", ".61", ".60", "C=2714, gamma=10", "~8"),
    ("svm-sigmoid", "paper"): PaperRow(".82", ".52", ".57", "C=1e5, gamma=.1, coef0=1.0", "~4"),
    ("svm-sgd", "paper"): PaperRow(".8-.9", ".58", ".76", None, "<1"),
    ("cnn-1", "paper"): PaperRow(".62", ".77", ".49"),
    ("cnn-1", "paper-raw"): PaperRow(".73", ".71", None),
    ("fcnn-1", "paper"): PaperRow(".81", ".65", ".68"),
    ("fcnn-1", "paper-raw"): PaperRow(".70", ".59", None),
    ("cnn-2", "paper"): PaperRow(".86", ".85", ".61"),
    ("cnn-2", "paper-raw"): PaperRow(".72", ".70", None),
}

TABLE_I = ("svm-linear", "svm-rbf", "svm-sigmoid", "svm-sgd")
TABLE_II = ("cnn-1", "fcnn-1", "cnn-2")


def reason_not_comparable(edge_name: str, classes: Sequence[str]) -> str | None:
    """Say why the paper's values do not belong beside a study, or return None where they do.

    >>> reason_not_comparable("O_K", ["FeO", "Fe3O4"]) is None
    True
    >>> reason_not_comparable("Mn_L3", ["Mn2+", "Mn3+"])
    'they are for the O K edge, and this study is of Mn_L3'
    """
    if edge_name != "O_K":
        return f"they are for the O K edge, and this study is of {edge_name}"
    if len(classes) != 2:
        return f"they are for two classes, and this study has {len(classes)}"
    return None
