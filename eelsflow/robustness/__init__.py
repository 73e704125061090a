"""How classifiers stand up to energy shifts, noise and dose: perturbations, curves and scores."""
