"""DRIFT on Ray: decoupled multi-turn rollouts and importance-weighted fine-tuning."""

__version__ = "0.1.0"
