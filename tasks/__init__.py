"""Thin Prefect tasks around the stages of `eelsflow`. Deployment source, not part of the wheel."""
