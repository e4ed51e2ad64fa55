"""Compute importance weights beside the rollouts of the run directory."""

from _launcher import launch

if __name__ == "__main__":
    launch("weigh")
