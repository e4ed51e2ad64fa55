"""Sample multi-turn trajectories of the reference policy into the run directory."""

from _launcher import launch

if __name__ == "__main__":
    launch("rollout")
