"""Orchestration with Prefect: the method section, flow by flow. Deployment source, not part of the wheel."""
