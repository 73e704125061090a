"""A study: from a study file to a reported comparison of classifiers.

`config` is the study file, `plan` what has to be computed (a pure value), `stages` computes one step each, `run` is
the plain loop over them. The Prefect flow calls the same stages; there is no third implementation.
"""
