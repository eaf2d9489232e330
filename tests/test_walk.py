"""The page of the walk on a fresh machine says what its record holds."""

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "walk.md").read_text()
RECORD = json.loads((ROOT / "benchmarks" / "results" / "walk.json").read_text())


def test_every_step_has_the_numbers_of_the_record():
    rows = [line.split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
    shown = [(row[1].strip("`"), *row[2:4], row[4].strip(" |")) for row in rows if len(row) == 5]
    steps = [
        (
            step["command"].removesuffix(" (again)"),
            *(str(step[key]) for key in ("seconds", "processor_seconds", "peak_mb")),
        )
        for step in RECORD["steps"]
    ]
    assert shown[1:] == steps  # behind the head


def test_the_page_names_commit_device_and_sizes():
    assert RECORD["commit"] in PAGE
    assert "two CPU cores" in PAGE
    assert f"environment {RECORD['environment_mb']}" in PAGE
    for name in ("jaxlib", "scipy", "tensorstore"):
        assert f"{name} {RECORD['packages_mb'][name]}" in PAGE
