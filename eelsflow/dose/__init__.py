"""How many electrons, or how many averaged pixels, a wanted accuracy or error of the fraction needs.

From one acquisition: its pixels' expected counts, with the shapes of the model's classes put in, are
recorded anew at other doses by the noise that was estimated, prepared and judged as the acquisition's own
spectra are. The error of a fraction follows from the covariance of least squares. What no dose removes stays in both:
the model's own mistakes, and what acquisitions of one class differ by.
"""

from eelsflow.dose.curves import Answer, Curve
from eelsflow.dose.plan import DosePlan, plan_dose, write_plan
from eelsflow.dose.specimen import simulate_specimen

__all__ = ["Answer", "Curve", "DosePlan", "plan_dose", "simulate_specimen", "write_plan"]
