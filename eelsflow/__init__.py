"""Oxidation-state maps from electron energy-loss spectrum images, with the evidence behind them.

Importing this package is quick on purpose: TensorFlow, MLflow, matplotlib and distributed load only
where they are used.
"""

__version__ = "0.1.0"
