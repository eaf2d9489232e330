"""Two processes on one mesh against one process on one device, and what merging makes of them."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers.batches import batch_of

import ivc_jax
from ivc_jax.commands import merge, run
from ivc_jax.evals.running.records import read_all
from ivc_jax.inputs.bucket import collate
from ivc_jax.parallel import processes
from ivc_jax.parallel.batch import assemble
from ivc_jax.parallel.mesh import make_mesh

ROOT = pathlib.Path(__file__).resolve().parents[2]
SAME = ("prediction", "parsed", "score", "kept", "grids", "visual_tokens", "kv_bytes")


def keyed(out):
    records = read_all(out)
    found = {(r.task, r.row, r.method): [getattr(r, name) for name in SAME] for r in records}
    assert len(found) == len(records)  # none twice
    return found


@pytest.fixture(scope="module")
def folders(tiny_hf, tmp_path_factory):
    """The same run by one process and by two of four devices each."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    options = ["--model", str(tiny_hf()), "--methods", "dense", "ivc:layer=1,keep_ratio=0.5"]
    options += ["--tasks", "grounding", "colour", "--limit", "5", "--batch-size", "4"]
    options += ["--max-new-tokens", "4", "--no-compile-cache", "--out"]
    script = str(ROOT / "experiments" / "run.py")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    joined = ["--mesh", "data=4,model=2", "--coordinator", f"localhost:{port}"]
    joined += ["--num-processes", "2", "--process-id"]
    pair = [
        subprocess.Popen(
            [sys.executable, script, *options, str(folder / "two"), *joined, str(process)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for process in (0, 1)
    ]  # fmt: skip
    assert run.main([*options, str(folder / "one")]) == 0
    for process in pair:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output[-3000:]
    return folder / "one", folder / "two"


def test_two_processes_write_what_one_writes_row_for_row(folders):
    one, two = folders
    assert len(keyed(one)) == 20
    assert keyed(two) == keyed(one)
    names = sorted(path.name for path in (two / "records").iterdir())
    assert names == [f"DigitScenes_{t}.{n}.jsonl" for t in ("colour", "grounding") for n in (0, 1)]


def test_the_report_is_that_of_one_process(folders):
    """All but what is timed."""
    rows = [json.loads((folder / "results.json").read_text())["rows"] for folder in folders]
    for row in (*rows[0], *rows[1]):
        del row["prefill_ms"], row["decode_ms_per_token"]
    assert rows[0] == rows[1]
    meta = json.loads((folders[1] / "results.json").read_text())["meta"]
    assert (meta["processes"], meta["mesh"]) == (2, {"data": 4, "model": 2})


def test_folders_of_processes_with_disks_of_their_own_merge(folders, tmp_path, capsys):
    one, two = folders
    for process in (0, 1):
        target = tmp_path / f"host{process}"
        shutil.copytree(
            two, target, ignore=shutil.ignore_patterns("data", f"*.{1 - process}.jsonl")
        )
    (tmp_path / "host1" / "meta.json").unlink()
    hosts = [str(tmp_path / f"host{n}") for n in (1, 0, 1)]  # one of them twice
    assert merge.main([*hosts, "--out", str(tmp_path / "all")]) == 0
    assert keyed(tmp_path / "all") == keyed(one)
    rows = [
        json.loads((folder / "results.json").read_text())["rows"]
        for folder in (two, tmp_path / "all")
    ]
    assert rows[0] == rows[1]
    assert merge.main([str(one), str(two), "--out", str(tmp_path / "none")]) == 2
    assert "belongs to another run" in capsys.readouterr().err
    assert merge.main([str(tmp_path), "--out", str(tmp_path / "none")]) == 2
    assert "has no manifest.json" in capsys.readouterr().err


def test_shards_are_assembled_as_the_whole_batch(tiny_hf):
    """Patch rows move with their samples; the tower's output is read from the right place."""
    config = ivc_jax.load(tiny_hf(), dtype="float32")[0].config
    mesh = make_mesh(data=1)
    assert processes.local_shards(mesh) == (0,)
    assert processes.owner(mesh, 0) == 0
    part = collate(batch_of(0, 2), config)
    placed = assemble({0: part}, mesh, config.vision.merge_area)
    assert jax.tree.all(jax.tree.map(np.array_equal, part, placed))


def test_processes_that_cannot_be_joined_are_named():
    with pytest.raises(ValueError, match="give all of --coordinator"):
        processes.initialize("localhost:1", 2)
    with pytest.raises(ValueError, match=r"--process-id must be in \[0, 1\], got 2"):
        processes.initialize("localhost:1", 2, 2)
