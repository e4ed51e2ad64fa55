"""Drills: what Ray reads from the environment when it is imported stands here."""

from __future__ import annotations

import os

from drift_ray.cluster import prepare_ray

prepare_ray()
os.environ |= {
    # A node that died is noticed within seconds.
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
    # A trainer that died, too.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
    # The same sums in the same order, attempt by attempt.
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
