"""Simulated acquisitions of iron-oxide nanocubes with their ground truth, at measured noise and levels.

`specimen` is where the cubes lie, `edges` what they do to the beam, `detector` what the camera makes of it,
`acquisition` puts the three together and writes them.
"""

from eelsflow.simulate.acquisition import (
    PRESETS,
    Acquisition,
    AcquisitionParameters,
    simulate_acquisition,
    simulate_directory,
)

__all__ = ["PRESETS", "Acquisition", "AcquisitionParameters", "simulate_acquisition", "simulate_directory"]
