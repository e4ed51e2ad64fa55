"""The run directory: whole files or none, on any file system."""

from __future__ import annotations

import errno
import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from drift_ray.errors import DataError, DriftRayError, StorageError
from drift_ray.schema import WEIGHT_SCHEMA
from drift_ray.store import RunStore, _write_local

PART = "weights/drift/part-000000-ab.parquet"


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunStore]:
    if request.param == "local":
        yield RunStore(str(tmp_path / "run"))
        return
    yield RunStore("memory://store-tests/run")
    MemoryFileSystem().rm("/store-tests", recursive=True)


@pytest.fixture
def local(tmp_path: Path) -> RunStore:
    return RunStore(str(tmp_path / "run"))


def weights(num_rows: int) -> pa.Table:
    columns = {
        field.name: pa.array([str(i) if field.type == pa.string() else i for i in range(num_rows)])
        for field in WEIGHT_SCHEMA
    }
    return pa.table(columns).cast(WEIGHT_SCHEMA)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_is_written_is_read(store: RunStore) -> None:
    store.write_bytes("a/b/c", b"")  # keeps the folder for the memory file system's teardown
    assert not store.exists(PART)
    store.write_table(PART, weights(7))
    assert store.exists(PART)
    assert store.read_table(PART, WEIGHT_SCHEMA).equals(weights(7))
    one = store.read_table(PART, WEIGHT_SCHEMA, ["importance_weight"])
    assert one.column_names == ["importance_weight"]
    store.check_parts([PART], WEIGHT_SCHEMA)
    store.write_table(PART, weights(2))
    assert store.read_table(PART, WEIGHT_SCHEMA).num_rows == 2
    store.write_json("x.json", {"a": [1, None]})
    assert store.read_json("x.json") == {"a": [1, None]}


def test_parts_are_sorted_and_only_what_is_committed(store: RunStore) -> None:
    store.write_bytes("x", b"")
    assert store.parts("rollouts") == []
    names = [f"rollouts/part-{i:06d}-{i}.parquet" for i in (10, 2, 0)]
    for name in (*names, "rollouts/notes.txt", "rollouts/failures/part-0.parquet"):
        store.write_bytes(name, b"x")
    assert store.parts("rollouts") == sorted(names)


@pytest.mark.parametrize("write", [RunStore.write_table, RunStore.create_table])
def test_half_written_files_are_invisible(
    local: RunStore, monkeypatch: pytest.MonkeyPatch, write: Callable[..., object]
) -> None:
    seen: list[list[str]] = []
    fsync = os.fsync

    def look_first(file: int) -> None:
        fsync(file)
        seen.append(local.parts("weights/drift"))
        assert len(files(Path(local.root))) == 1  # the temporary one

    monkeypatch.setattr(os, "fsync", look_first)
    write(local, PART, weights(1))
    assert seen == [[]]
    assert local.parts("weights/drift") == [PART]
    assert files(Path(local.root)) == [PART]


def test_what_is_created_is_never_replaced(store: RunStore) -> None:
    store.write_bytes("a/b/c", b"")
    assert store.create_table(PART, weights(7))
    first = store.fs.cat_file(store.path(PART))
    assert not store.create_table(PART, weights(2))
    assert store.fs.cat_file(store.path(PART)) == first
    assert store.read_table(PART, WEIGHT_SCHEMA).equals(weights(7))
    store.write_table(PART, weights(2))  # this one does
    assert store.num_rows([PART]) == 2
    store.remove(PART)
    assert store.create_table(PART, weights(3))
    assert store.num_rows([PART, PART]) == 6
    assert store.num_rows([]) == 0


class OneAtATime(MemoryFileSystem):
    """Looks and writes in one step when it creates, as object stores do."""

    protocol = "one-at-a-time"
    cachable = False
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    _lock = threading.Lock()

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        with self._lock:
            super().pipe_file(path, value, mode=mode)


@pytest.fixture(params=["local", "one-at-a-time"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    fsspec.register_implementation("one-at-a-time", OneAtATime, clobber=True)
    yield str(tmp_path / "run") if request.param == "local" else "one-at-a-time://run"
    OneAtATime.store.clear()
    OneAtATime.pseudo_dirs[:] = [""]


def test_of_many_that_create_at_once_one_does(shared: str) -> None:
    num_writers = 8
    together = threading.Barrier(num_writers)

    def create(number: int) -> bool:
        store, table = RunStore(shared), weights(number + 1)
        together.wait(timeout=60)
        return store.create_table(PART, table)

    with ThreadPoolExecutor(num_writers) as threads:
        made = list(threads.map(create, range(num_writers)))
    assert sum(made) == 1
    store = RunStore(shared)
    assert store.num_rows([PART]) == made.index(True) + 1
    found = store.fs.find(store.root)
    assert [name.rsplit("/", 1)[1] for name in found] == [PART.rsplit("/", 1)[1]]


class _FullDisk(io.BytesIO):
    def write(self, data: Any) -> int:
        super().write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail_write(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def open_full(path: Any, mode: str) -> io.BytesIO:
        Path(path).touch()
        return _FullDisk()

    monkeypatch.setattr("drift_ray.store.open", open_full, raising=False)


def fail_call(name: str) -> Callable[[pytest.MonkeyPatch, BaseException], None]:
    def patch(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(os, name, fail)

    return patch


def fail_commit(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("drift_ray.store._write_local", partial(_write_local, commit=fail))


@pytest.mark.parametrize("fail", [fail_write, fail_call("fsync"), fail_commit])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_what_was_there(
    local: RunStore,
    monkeypatch: pytest.MonkeyPatch,
    fail: Callable[[pytest.MonkeyPatch, BaseException], None],
    code: int,
) -> None:
    local.write_bytes("a/part", b"old")
    with monkeypatch.context() as patched:
        fail(patched, OSError(code, os.strerror(code)))
        for name in ("a/part", "a/other"):
            with pytest.raises(StorageError) as caught:
                local.write_bytes(name, b"new bytes")
            assert "No space left" in str(caught.value)
            assert local.path(name) in str(caught.value)
            assert "same command again" in caught.value.hint
    assert files(Path(local.root)) == ["a/part"]
    assert local.fs.cat_file(local.path("a/part")) == b"old"


@pytest.mark.parametrize("folder", ["taken", "taken/run"])
def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path, folder: str) -> None:
    (tmp_path / "taken").write_text("notes")
    with pytest.raises(StorageError, match=f"{folder}/a.*a file, not a folder") as caught:
        RunStore(str(tmp_path / folder)).write_bytes("a", b"x")
    assert "run=" in caught.value.hint


@pytest.mark.parametrize("fail", [fail_write, fail_call("fsync"), fail_call("link")])
def test_a_full_disk_leaves_nothing_that_was_to_be_created(
    local: RunStore,
    monkeypatch: pytest.MonkeyPatch,
    fail: Callable[[pytest.MonkeyPatch, BaseException], None],
) -> None:
    with monkeypatch.context() as patched:
        fail(patched, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with pytest.raises(StorageError, match="No space left"):
            local.create_table(PART, weights(1))
    assert files(Path(local.root)) == []
    assert local.create_table(PART, weights(1))


def test_ctrl_c_leaves_what_was_there(local: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    local.write_bytes("part", b"old")
    fail_call("fsync")(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        local.write_bytes("part", b"new")
    assert files(Path(local.root)) == ["part"]
    assert local.fs.cat_file(local.path("part")) == b"old"


def test_other_storage_errors_name_the_path(local: RunStore) -> None:
    Path(local.root).write_text("a file where the run directory should be")
    for attempt in (
        lambda: local.write_bytes("a", b""),
        lambda: local.append_metrics([{}]),
        lambda: local.read_json("run.json"),
        lambda: local.read_table(PART, WEIGHT_SCHEMA),
    ):
        with pytest.raises(StorageError, match=str(local.root)):
            attempt()


def test_attempts_at_once_leave_one_whole_file(local: RunStore) -> None:
    payloads = [bytes([i]) * 100_000 for i in range(8)]
    local.write_bytes("part", payloads[0])
    with ThreadPoolExecutor(4) as threads:
        writes = [threads.submit(local.write_bytes, "part", each) for each in payloads * 5]
        while not all(write.done() for write in writes):
            assert local.fs.cat_file(local.path("part")) in payloads
        assert [write.result() for write in writes] == [None] * 40
    assert files(Path(local.root)) == ["part"]


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def without_its_end(data: bytes) -> bytes:
    return data[:-1]


def emptied(_: bytes) -> bytes:
    return b""


def with_a_broken_footer(data: bytes) -> bytes:
    return data[:-60] + b"\xff" * 52 + data[-8:]


def with_broken_pages(data: bytes) -> bytes:
    return data[:8] + b"\xff" * 64 + data[72:]


@pytest.mark.parametrize("damage", [truncated, without_its_end, emptied, with_a_broken_footer])
def test_a_damaged_part_is_named_with_its_remedy(
    store: RunStore, damage: Callable[[bytes], bytes]
) -> None:
    store.write_table(PART, weights(100))
    store.write_bytes(PART, damage(store.fs.cat_file(store.path(PART))))
    for read in (
        lambda: store.read_table(PART, WEIGHT_SCHEMA),
        lambda: store.check_parts([PART], WEIGHT_SCHEMA),
    ):
        with pytest.raises(DataError) as caught:
            read()
        assert store.path(PART) in str(caught.value)
        assert "Delete this file" in caught.value.hint


def test_damage_behind_a_sound_footer_is_named_with_its_remedy(local: RunStore) -> None:
    local.write_table(PART, weights(100))
    local.write_bytes(PART, with_broken_pages(local.fs.cat_file(local.path(PART))))
    with pytest.raises(DataError, match="part-000000-ab") as caught:
        local.read_table(PART, WEIGHT_SCHEMA)
    assert "Delete this file" in caught.value.hint


def test_foreign_tables_are_refused_by_path(local: RunStore) -> None:
    local.write_table(PART, pa.table({"a": [1]}))
    with pytest.raises(DataError, match=r"part-000000-ab.*not written by drift_ray"):
        local.read_table(PART, WEIGHT_SCHEMA)
    with pytest.raises(DataError, match=r"part-000000-ab.*not written by drift_ray"):
        local.check_parts([PART], WEIGHT_SCHEMA)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe\x00"])
def test_broken_json_is_named(local: RunStore, text: bytes) -> None:
    local.write_bytes("run.json", text)
    with pytest.raises(DataError, match=r"run/run\.json"):
        local.read_json("run.json")


def test_metrics_are_appended_line_by_line(store: RunStore) -> None:
    store.append_metrics([{"step": 1}, {"step": 2}])
    store.append_metrics([{"step": 3}])
    lines = store.fs.cat_file(store.path("metrics.jsonl")).decode().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": k} for k in (1, 2, 3)]


def test_metrics_go_on_after_half_a_line(local: RunStore) -> None:
    local.append_metrics([{"step": 1}])
    with open(local.path("metrics.jsonl"), "ab") as file:
        file.write(b'{"step": 2, "lo')  # the writer was killed
    local.append_metrics([{"step": 3}])
    lines = local.fs.cat_file(local.path("metrics.jsonl")).splitlines()
    assert json.loads(lines[-1]) == {"step": 3}


def test_folders_go_up_and_come_down_whole(store: RunStore, tmp_path: Path) -> None:
    source = tmp_path / "model"
    (source / "sub").mkdir(parents=True)
    (source / "config.json").write_text("1")
    (source / "sub" / "x").write_text("2")
    store.write_bytes("model/stale", b"")
    store.upload_dir(source, "model")
    folder = store.local_dir("model")
    assert files(folder) == ["config.json", "sub/x"]
    assert (folder / "sub" / "x").read_text() == "2"
    store.remove("model")
    assert not store.exists("model/config.json")
    store.remove("model")  # again: nothing happens
    assert files(source) == ["config.json", "sub/x"]
    store.write_bytes("x", b"")


def test_a_local_folder_that_is_missing_is_an_error_as_a_remote_one_is(store: RunStore) -> None:
    store.write_bytes("x", b"")
    with pytest.raises(DriftRayError, match="model"):
        store.local_dir("model")


@pytest.mark.parametrize("url", ["nope://bucket/run", "simplecache::nope://x"])
def test_unknown_protocols_are_storage_errors(url: str) -> None:
    with pytest.raises(StorageError) as caught:
        RunStore(url)
    assert url in str(caught.value)


@pytest.mark.parametrize("name", ["run[1]", "beta=0.1,lr*2", "what?", "a b", "ünï"])
def test_any_folder_name_will_do(tmp_path: Path, name: str) -> None:
    store = RunStore(str(tmp_path / name))
    store.write_table(PART, weights(1))
    assert store.parts("weights/drift") == [PART]
    assert store.read_table(PART, WEIGHT_SCHEMA).num_rows == 1
    store.remove("weights")
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "form", ["runs/x", "./runs/x/", "~/runs/x", "file://runs/x", "file://{}/runs/x", "{}/runs/x"]
)
def test_the_url_means_the_same_place_in_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    store = RunStore(form.format(tmp_path))
    assert store.root == str(tmp_path / "runs" / "x")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # Ray's workers have a working directory of their own
    assert RunStore(store.url).root == store.root


class RememberingFileSystem(MemoryFileSystem):
    """Keeps listings and answers ``exists`` from them, as s3fs, gcsfs and adlfs do by default."""

    protocol = "remembering"
    store: dict[str, Any] = {}  # noqa: RUF012  (the class of fsspec that keeps files does so too)
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(path.removeprefix("remembering:/"))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        path = self._strip_protocol(path)
        entries = self.dircache[path] if path in self.dircache else super().ls(path, detail=True)
        self.dircache[path] = entries
        return entries if detail else [entry["name"] for entry in entries]

    def exists(self, path: str, **kwargs: Any) -> bool:
        path = self._strip_protocol(path)
        parent = path.rsplit("/", 1)[0]
        if parent in self.dircache:
            return any(entry["name"] == path for entry in self.dircache[parent])
        return bool(super().exists(path))

    find = AbstractFileSystem.find  # by way of ls, as on object stores

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        super().pipe_file(path, value, mode=mode)
        self.invalidate_cache()

    def invalidate_cache(self, path: str | None = None) -> None:
        self.dircache.clear()


@pytest.fixture
def remembering() -> Iterator[tuple[RunStore, RememberingFileSystem]]:
    fsspec.register_implementation("remembering", RememberingFileSystem, clobber=True)
    yield RunStore("remembering://run"), RememberingFileSystem(skip_instance_cache=True)
    RememberingFileSystem.store.clear()
    RememberingFileSystem.pseudo_dirs[:] = [""]


def test_what_another_process_commits_is_seen_at_once(
    remembering: tuple[RunStore, RememberingFileSystem],
) -> None:
    driver, worker = remembering
    driver.write_bytes("rollouts/part-0.parquet", b"x")
    assert driver.parts("rollouts") == ["rollouts/part-0.parquet"]
    assert not driver.exists("rollouts/summary.json")
    worker.pipe_file(driver.path("rollouts/part-1.parquet"), b"x")
    worker.pipe_file(driver.path("rollouts/summary.json"), b"{}")
    assert driver.parts("rollouts") == ["rollouts/part-0.parquet", "rollouts/part-1.parquet"]
    assert driver.exists("rollouts/summary.json")


def test_a_download_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = RunStore("memory://store-tests/download")
    with pytest.raises(DriftRayError):
        store.local_dir("missing")
    assert list(tmp_path.iterdir()) == []
