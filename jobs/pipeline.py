"""The whole pipeline: rollout, weigh, train, evaluate; skips what the run already holds."""

from _launcher import launch

if __name__ == "__main__":
    launch("run")
