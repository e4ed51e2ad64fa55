"""The run directory on S3: a real server on loopback, with faults between."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import fsspec
import pyarrow as pa
import pytest

from drift_ray.errors import DriftRayError, StorageError
from drift_ray.rollout.pool import ReplicaPool
from drift_ray.rollout.sampling import sample_missing
from drift_ray.schema import TRAJECTORY_SCHEMA
from drift_ray.store import RunStore
from drift_ray.uploads import abort_abandoned_uploads
from tests.s3_server import BUCKET, ENVIRONMENT, Fault, FaultyS3, faulty_s3
from tests.unit.fake_pool import FakePool
from tests.unit.scripted import prompts
from tests.unit.test_sampling import plan

MIB = 2**20
numbers = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyS3]:
    """A server as the environment names it; retries do not wait."""
    with faulty_s3() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL_S3": server.url}.items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        patch.setattr("botocore.retryhandler.random", SimpleNamespace(random=lambda: 0.0))
        patch.setattr("s3fs.core.S3FileSystem.retries", 2)
        forget_connections()
        fsspec.filesystem("s3").mkdir(BUCKET)
        yield server
        forget_connections()


@pytest.fixture
def s3(server: FaultyS3) -> FaultyS3:
    """The server, where everything is well."""
    server.choose = lambda method, path: None
    return server


@pytest.fixture
def environment(s3: FaultyS3) -> Iterator[pytest.MonkeyPatch]:
    """The environment, to be changed: it is read when a connection is made."""
    with pytest.MonkeyPatch.context() as patch:
        forget_connections()
        yield patch
    forget_connections()


def forget_connections() -> None:
    """s3fs keeps one file system for all that ask with the same arguments."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def store(s3: FaultyS3) -> RunStore:
    return RunStore(f"s3://{BUCKET}/run-{next(numbers)}")


TABLE = pa.table({"a": [1, 2, 3]})
PART = "rollouts/part-000000-ab.parquet"


def test_a_run_directory_may_lie_on_s3(store: RunStore, tmp_path: Path) -> None:
    assert store.parts("rollouts") == []
    assert store.create_table(PART, TABLE)
    assert not store.create_table(PART, pa.table({"a": [4]}))
    assert store.num_rows([PART]) == 3
    store.append_metrics([{"step": 1}])
    store.append_metrics([{"step": 2}])
    assert store.fs.cat_file(store.path("metrics.jsonl")) == b'{"step": 1}\n{"step": 2}\n'
    (tmp_path / "model" / "sub").mkdir(parents=True)
    (tmp_path / "model" / "sub" / "weights").write_bytes(b"w")
    store.write_bytes("model/stale", b"")
    store.upload_dir(tmp_path / "model", "model")
    folder = store.local_dir("model")
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["weights"]
    store.remove("rollouts")
    assert not store.exists(PART)


@pytest.mark.parametrize("fault", ["503", "slow", "cut before", "cut after"])
def test_a_write_that_stumbles_happens_once(s3: FaultyS3, store: RunStore, fault: Fault) -> None:
    s3.times(1, fault, "PUT", "file")
    store.write_bytes("file", b"whole")
    assert store.fs.cat_file(store.path("file")) == b"whole"
    s3.times(1, fault, "PUT", "part-")
    # Where the answer was lost, the second attempt finds what the first one made.
    assert store.create_table(PART, TABLE) is (fault != "cut after")
    assert store.num_rows(store.parts("rollouts")) == 3


@pytest.mark.parametrize("fault", ["503", "slow", "cut before", "cut within"])
def test_a_read_that_stumbles_is_whole(s3: FaultyS3, store: RunStore, fault: Fault) -> None:
    store.write_json("x.json", {"a": "b" * 1000})
    store.create_table(PART, TABLE)
    for part_of_path, read in (
        ("x.json", lambda: store.read_json("x.json") == {"a": "b" * 1000}),
        ("part-", lambda: store.num_rows([PART]) == 3),
    ):
        s3.times(1, fault, "GET", part_of_path)
        assert read()


@pytest.mark.parametrize("fault", ["503", "cut before"])
def test_an_object_that_never_comes_is_an_error_that_names_it(
    s3: FaultyS3, environment: pytest.MonkeyPatch, store: RunStore, fault: Fault
) -> None:
    environment.setenv("AWS_MAX_ATTEMPTS", "1")
    store.create_table(PART, TABLE)
    s3.choose = lambda method, path: fault if "000000" in path else None
    for attempt in (
        lambda: store.create_table(PART, TABLE),
        lambda: store.num_rows([PART]),
        lambda: store.write_json(PART, 1),
        lambda: store.exists(PART),
    ):
        # Never a DataError, which would advise to delete what is well.
        with pytest.raises(StorageError, match="part-000000"):
            attempt()
    store.create_table("rollouts/part-000001-ab.parquet", TABLE)  # others are not affected
    s3.choose = lambda method, path: None
    assert store.num_rows(store.parts("rollouts")) == 6


def test_a_bucket_that_is_not_there_is_named(s3: FaultyS3) -> None:
    store = RunStore("s3://no-such-bucket/run")
    with pytest.raises(StorageError, match=r"no-such-bucket/run/run.json.*does not exist"):
        store.write_json("run.json", {})
    assert abort_abandoned_uploads(store) == 0


def test_missing_credentials_are_named(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("AWS_ACCESS_KEY_ID")
    environment.delenv("AWS_SECRET_ACCESS_KEY")
    store = RunStore(f"s3://{BUCKET}/run")
    for attempt in (
        lambda: store.exists("run.json"),
        lambda: store.write_json("run.json", {}),
        lambda: store.num_rows([PART]),
    ):
        with pytest.raises(StorageError, match=r"credentials(.|\n)*Give this process"):
            attempt()


def test_a_server_that_is_not_there_is_named(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    environment.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StorageError, match=r"127.0.0.1:9"):
        RunStore(f"s3://{BUCKET}/run").exists("run.json")


def test_an_upload_that_fails_leaves_nothing(
    s3: FaultyS3, environment: pytest.MonkeyPatch, store: RunStore, tmp_path: Path
) -> None:
    environment.setenv("AWS_MAX_ATTEMPTS", "1")
    model = tmp_path / "model"
    model.mkdir()
    with (model / "weights").open("wb") as file:
        file.truncate(101 * MIB)  # in pieces of 50 MiB
    s3.choose = lambda method, path: "503" if method == "PUT" else None
    with pytest.raises(StorageError, match="weights"):
        store.upload_dir(model, "model")
    assert unfinished(store) == []
    assert not store.exists("model")


def test_what_a_killed_upload_leaves_is_removed(store: RunStore) -> None:
    other = RunStore(f"{store.url}-2")  # the same beginning, another run
    for each in (store, other):
        key = each.path("model/weights").partition("/")[2]
        each.fs.call_s3("create_multipart_upload", Bucket=BUCKET, Key=key)
    # This server dates all uploads to 2010.
    assert abort_abandoned_uploads(store, after=timedelta(days=36_500)) == 0
    assert abort_abandoned_uploads(store) == 1
    assert unfinished(store) == []
    assert len(unfinished(other)) == 1
    assert abort_abandoned_uploads(RunStore("memory://run")) == 0
    assert abort_abandoned_uploads(RunStore(f"s3://{BUCKET}")) == 0
    assert len(unfinished(other)) == 1


def unfinished(store: RunStore) -> list[Any]:
    """Uploads below a run directory that were begun."""
    prefix = store.path("").partition("/")[2]
    answer = store.fs.call_s3("list_multipart_uploads", Bucket=BUCKET, Prefix=prefix)
    return list(answer.get("Uploads") or [])


def test_rollouts_are_sampled_exactly_once_whatever_the_storage_does(
    s3: FaultyS3, store: RunStore, tmp_path: Path
) -> None:
    """Every fifth request goes wrong, and the driver is lost after every second part."""
    parts = plan(prompts(["1"] * 16))
    undisturbed = RunStore(str(tmp_path / "run"))
    sample(undisturbed, FakePool(undisturbed))
    schedule: dict[str, tuple[Fault, ...]] = {
        "PUT": ("503", "cut before", "cut after"),
        "GET": ("cut within", "503", "cut before"),
    }
    faults = {method: itertools.cycle(kinds) for method, kinds in schedule.items()}
    requests = itertools.count(1)
    met = set()

    def choose(method: str, path: str) -> Fault | None:
        data = method in faults and path.endswith((".parquet", ".json"))
        if not data or next(requests) % 5:
            return None
        fault = next(faults[method])
        met.add((method, fault))
        return fault

    s3.choose = choose
    for _ in range(30):
        pool = FakePool(store, die_after=2)
        try:
            sample(store, pool)
            break
        except DriftRayError:
            continue
    s3.choose = lambda method, path: None
    assert met == {(method, fault) for method, kinds in schedule.items() for fault in kinds}
    assert store.parts("rollouts") == undisturbed.parts("rollouts") == [p.name for p in parts]
    assert rows(store) == rows(undisturbed)


def sample(store: RunStore, pool: FakePool) -> None:
    sample_missing(
        store,
        cast(ReplicaPool, pool),
        plan(prompts(["1"] * 16)),
        stage="rollout",
        max_failed_frac=0.0,
    )


def rows(store: RunStore) -> list[Any]:
    tables = [store.read_table(part, TRAJECTORY_SCHEMA) for part in store.parts("rollouts")]
    return list(pa.concat_tables(tables).to_pylist())
