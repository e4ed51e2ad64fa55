"""Uploads in several pieces that were begun and never ended: on S3 they are invisible, and cost."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

from drift_ray.store import RunStore

logger = logging.getLogger(__name__)

_ABANDONED_AFTER = timedelta(days=1)
"""No piece takes so long; younger uploads may be another process's that is at work."""


def abort_abandoned_uploads(store: RunStore, after: timedelta = _ABANDONED_AFTER) -> int:
    """Remove what processes that were killed have left of their uploads below a run directory.

    S3 alone needs this: other stores forget such uploads by themselves. Where it may not be done,
    the log says so; nothing else depends on it.

    Args:
        store: The run directory.
        after: Age of the uploads that go.

    Returns:
        How many there were.
    """
    fs = store.fs
    if "s3" not in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)):
        return 0
    bucket, prefix, _ = fs.split_path(store.path(""))
    if not prefix:  # a bucket as a whole is not ours to tidy
        return 0
    before = datetime.now(UTC) - after
    try:
        answer = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix)
        # A thousand at a time; the next run takes the next ones.
        abandoned = [each for each in answer.get("Uploads", []) if each["Initiated"] <= before]
        for each in abandoned:
            fs.call_s3(
                "abort_multipart_upload", Bucket=bucket, Key=each["Key"], UploadId=each["UploadId"]
            )
    except OSError as error:
        logger.warning("Cannot look for abandoned uploads in %s: %s", store, error)
        return 0
    if abandoned:
        logger.info("Removed %d abandoned uploads below %s", len(abandoned), store)
    return len(abandoned)
