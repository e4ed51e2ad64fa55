"""Fine-tune the policy on the weighted trajectories of the run directory."""

from _launcher import launch

if __name__ == "__main__":
    launch("train")
