"""Evaluate the models of the run directory with the rollout code."""

from _launcher import launch

if __name__ == "__main__":
    launch("evaluate")
