"""Two processes against one, row for row, and again with one of them killed ten times.

    python benchmarks/kill_and_resume.py [--kills 10] [--limit 30] [--seed 0]

Each process has four virtual CPU devices; the mesh is data=4, model=2. The bundled benchmark is
run (1) by one process on one device, (2) by the two, undisturbed, (3) by the two while one of them,
drawn by lot, is killed (SIGKILL) at a random moment, restarted, and so on. What is compared are
the records: none twice, none missing, equal texts, kept tokens and scores.
"""

import argparse
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from record import ROOT, write_report

from ivc_jax.evals.running.records import read_all
from ivc_jax.evals.schema import Record

_COMPARED = ("prediction", "parsed", "score", "kept", "grids", "visual_tokens", "failed")
_METHODS = ("dense", "ivc:keep_ratio=0.5", "fastv:keep_ratio=0.5")
_PATIENCE = 300.0  # seconds that a process may outlive its peer


def start(out: pathlib.Path, limit: int, process: int | None, port: int) -> subprocess.Popen:
    """Start one process of a run, or the only one."""
    command = [sys.executable, str(ROOT / "experiments" / "run.py"), "--out", str(out)]
    command += ["--limit", str(limit), "--batch-size", "8", "--methods", *_METHODS]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    if process is not None:
        command += ["--mesh", "data=4,model=2", "--coordinator", f"localhost:{port}"]
        command += ["--num-processes", "2", "--process-id", str(process)]
        environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    log = (out.parent / f"{out.name}.{process or 0}.log").open("ab")
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=ROOT)


def find_free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start_pair(out: pathlib.Path, limit: int) -> list[subprocess.Popen]:
    """Start both processes of a run."""
    port = find_free_port()
    return [start(out, limit, process, port) for process in (0, 1)]


def kill_one(
    pair: Sequence[subprocess.Popen], out: pathlib.Path, draw: random.Random, more: float
) -> dict[str, Any]:
    """Kill one of the two and report what happened.

    Args:
        more: records that they write before; below 1, so many times 20 seconds of their start.
    """
    begin, before, victim = time.monotonic(), count_lines(out), draw.randrange(2)
    while any(process.poll() is None for process in pair):
        waited = time.monotonic() - begin
        if waited > 20 * more if more < 1 else count_lines(out) >= before + more:
            break
        time.sleep(0.01)
    time.sleep(draw.uniform(0, 0.2))
    delay = time.monotonic() - begin
    alive = all(process.poll() is None for process in pair)
    pair[victim].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    pair[victim].wait()
    ended = True
    try:
        pair[1 - victim].wait(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        ended = False
        pair[1 - victim].kill()
        pair[1 - victim].wait()
    return {
        "after_seconds": round(delay, 1),
        "victim": victim,
        "both_ran": alive,
        "peer_ended_by_itself": ended,
        "peer_ended_after_seconds": round(time.monotonic() - killed, 1),
        "records_before": before,
        "records_then": count_lines(out),
    }


def count_lines(out: pathlib.Path) -> int:
    """Count the lines of all record files."""
    return sum(path.read_bytes().count(b"\n") for path in out.glob("records/*.jsonl"))


def read_keyed(out: pathlib.Path) -> tuple[dict[tuple, Record], int]:
    """Return the records by key, and how many there are more than keys."""
    records = read_all(out)
    found = {(r.task, r.example_id, r.method): r for r in records}
    return found, len(records) - len(found)


def count_differences(first: dict[tuple, Record], second: dict[tuple, Record]) -> dict[str, int]:
    """Count missing records and those that differ in each compared field."""
    both = first.keys() & second.keys()
    result = {
        "missing": len(first.keys() - second.keys()),
        "more": len(second.keys() - first.keys()),
    }
    for field in _COMPARED:
        result[field] = sum(
            getattr(first[key], field) != getattr(second[key], field) for key in both
        )
    return result


def main() -> None:
    """Run all three and write the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--limit", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    target = arguments.out or ROOT / "benchmarks" / "results" / "kill_and_resume.json"
    with tempfile.TemporaryDirectory() as scratch:
        one, two, killed = (pathlib.Path(scratch) / n for n in ("one", "two", "killed"))
        begin = time.monotonic()
        assert start(one, arguments.limit, None, 0).wait() == 0
        seconds_one = time.monotonic() - begin
        begin = time.monotonic()
        assert [p.wait() for p in start_pair(two, arguments.limit)] == [0, 0]
        seconds_two = time.monotonic() - begin
        kills = []
        total = count_lines(two)
        for left in range(arguments.kills, 0, -1):
            share = (total - count_lines(killed)) / (left + 1)
            # three in ten die while they start, the others at any record of their share
            more = draw.random() if draw.random() < 0.3 else 1 + draw.uniform(0, 1.5 * share)
            pair = start_pair(killed, arguments.limit)
            kills.append(kill_one(pair, killed, draw, more))
            print(kills[-1], flush=True)
        assert [p.wait() for p in start_pair(killed, arguments.limit)] == [0, 0]
        alone, doubled_one = read_keyed(one)
        pair_records, doubled_two = read_keyed(two)
        after_kills, doubled_killed = read_keyed(killed)
        write_report(
            target, "kill_and_resume",
            records=len(alone),
            limit=arguments.limit,
            methods=list(_METHODS),
            mesh={"data": 4, "model": 2},
            seconds_one_process=round(seconds_one, 1),
            seconds_two_processes=round(seconds_two, 1),
            doubled={"one": doubled_one, "two": doubled_two, "killed": doubled_killed},
            two_against_one=count_differences(alone, pair_records),
            killed_against_two=count_differences(pair_records, after_kills),
            kills=kills,
        )  # fmt: skip


if __name__ == "__main__":
    main()
