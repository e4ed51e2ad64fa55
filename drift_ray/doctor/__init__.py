"""Looks for what would stop a run before it is started: ``drift-ray doctor CONFIG.yaml``.

Each check is a function from a configuration to findings; :mod:`drift_ray.doctor.diagnosis` knows
all of them. None starts Ray or vLLM, but for joining a cluster that ``RAY_ADDRESS`` names.
"""
