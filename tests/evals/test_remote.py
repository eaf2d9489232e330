"""Paths in buckets, on a file system in memory that stands in for Google's."""

import json
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ivc_jax import cloud
from ivc_jax.evals.running.mirror import Mirror


class _Bucket(MemoryFileSystem):
    """What fsspec finds for gs://, with the options that are given to the real one."""

    protocol = ("gs", "gcs")
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]

    def __init__(self, finalize_on_close=True, **options):
        super().__init__(**options)

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.removeprefix("gs://").removeprefix("gcs://"))


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    from etils.epath import backend

    for name in ("gs", "gcs"):
        fsspec.register_implementation(name, _Bucket, clobber=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    backend.fsspec_backend._get_filesystem.cache_clear()
    _Bucket.store.clear()
    return _Bucket()


def put(bucket, path, content):
    with bucket.open(path, "wb") as file:
        file.write(content)


def test_files_are_copied_once_and_whole(bucket, tmp_path):
    put(bucket, "gs://b/data/a.tsv", b"index\timage\n")
    target = tmp_path / "copy" / "a.tsv"
    assert cloud.pull_file("gs://b/data/a.tsv", target)
    assert target.read_bytes() == b"index\timage\n"
    target.write_bytes(b"INDEX\tIMAGE\n")  # of the same size: not copied again
    assert cloud.pull_file("gs://b/data/a.tsv", target)
    assert target.read_bytes() == b"INDEX\tIMAGE\n"
    put(bucket, "gs://b/data/a.tsv", b"longer\tcontent\n")
    assert cloud.pull_file("gs://b/data/a.tsv", target)
    assert target.read_bytes() == b"longer\tcontent\n"
    assert not cloud.pull_file("gs://b/data/none.tsv", tmp_path / "none.tsv")
    assert [path.name for path in target.parent.iterdir()] == ["a.tsv"]  # no draft stays


def test_folders_keep_their_layout(bucket, tmp_path):
    put(bucket, "gs://b/model/config.json", b"{}")
    put(bucket, "gs://b/model/params/0", b"weights")
    cloud.pull_folder("gs://b/model", tmp_path / "model")
    assert (tmp_path / "model" / "params" / "0").read_bytes() == b"weights"
    with pytest.raises(cloud.RemoteError, match="gs://b/none is no folder"):
        cloud.pull_folder("gs://b/none", tmp_path / "none")


def test_a_bucket_that_cannot_be_used_is_named(monkeypatch):
    def refuse(path):
        raise ImportError("no module named gcsfs")

    monkeypatch.setattr(cloud.epath, "Path", refuse)
    with pytest.raises(cloud.RemoteError, match=r"cannot use gs://b/a: .*; pip install gcsfs"):
        cloud.pull_file("gs://b/a", None)


def test_a_run_goes_on_from_a_bucket(bucket, tmp_path, monkeypatch):
    """Records and manifest go out; a fresh machine gets them back and adds to them."""
    first = Mirror("gs://b/runs/one", process=0)
    (first.local / "records").mkdir(parents=True)
    (first.local / "records" / "t.0.jsonl").write_text('{"row": 1}\n')
    (first.local / "manifest.json").write_text("{}")
    first.push(["records/t.0.jsonl", "manifest.json"])  # too early
    assert not bucket.exists("gs://b/runs/one/records/t.0.jsonl")
    first.push(["records/t.0.jsonl", "manifest.json"], now=True)
    put(bucket, "gs://b/runs/one/records/t.1.jsonl", b'{"row": 2}\n')

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other machine"))
    second = Mirror("gs://b/runs/one/", process=0)
    assert second.local != first.local
    second.pull(["t.0.jsonl"])
    assert (second.local / "records" / "t.0.jsonl").read_text() == '{"row": 1}\n'
    second.pull_all()
    lines = [path.read_text() for path in sorted(second.local.glob("records/*"))]
    assert [json.loads(line)["row"] for line in lines] == [1, 2]
    (second.local / "results.json").write_text("[]")
    second.push_all()
    assert bucket.cat("gs://b/runs/one/results.json") == b"[]"


def test_local_folders_are_left_alone(tmp_path):
    mirror = Mirror(str(tmp_path), process=3)
    assert mirror.local == tmp_path
    mirror.pull(["t.jsonl"])
    mirror.pull_all()
    mirror.push(["t.jsonl"], now=True)
    mirror.push_all()
    assert list(tmp_path.iterdir()) == []
