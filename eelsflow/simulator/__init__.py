"""Simulated acquisitions of iron oxides with their ground truth, at measured noise and levels.

`specimen` is where cubes lie, `scenes` whole fields of particles, `edges` and `generic_edges` what they do to the beam,
`detector` what the camera makes of it, `low_loss` the low loss of the same scan, `parameters` and `presets` how far all
of it varies; `acquisition` puts it together, `directory` writes many.
"""

from eelsflow.simulator.acquisition import (
    Acquisition,
    AcquisitionParameters,
    ExpectedCounts,
    expected_counts,
    simulate_acquisition,
)
from eelsflow.simulator.detector import NoiseModel
from eelsflow.simulator.directory import KNOWN_FIELDS, PlannedAcquisition, plan_directory, simulate_directory
from eelsflow.simulator.low_loss import LowLossRecording
from eelsflow.simulator.presets import PRESETS

__all__ = [
    "KNOWN_FIELDS",
    "PRESETS",
    "Acquisition",
    "AcquisitionParameters",
    "ExpectedCounts",
    "LowLossRecording",
    "NoiseModel",
    "PlannedAcquisition",
    "expected_counts",
    "plan_directory",
    "simulate_acquisition",
    "simulate_directory",
]
