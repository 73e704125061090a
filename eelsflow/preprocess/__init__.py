"""Preprocessing steps, a module each: pure functions on arrays first, then the chain and its block-wise form."""
