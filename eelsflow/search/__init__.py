"""Grid searches of support vector machines over one shared Gram matrix."""
