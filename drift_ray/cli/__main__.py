"""``python -m drift_ray.cli``: the same as ``drift-ray``."""

import sys

from drift_ray.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
