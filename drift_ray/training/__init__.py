"""Importance-weighted supervised fine-tuning: max_θ E[ w(τ) · log π_θ(τ|x) ] over stored samples.

``data`` and ``batches`` are NumPy and Arrow; ``loss``, ``passes`` and ``loop`` are PyTorch
alone; only ``stage`` knows Ray Train. ``python -m drift_ray.training`` runs without Ray.
"""

from drift_ray.store import MODEL

SUMMARY_FILE = f"{MODEL}/drift_ray.json"
"""Written last: the model folder is complete, and of the training whose digest it names."""
