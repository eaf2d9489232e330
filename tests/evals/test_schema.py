"""The files of a run: their keys, and what older ones lack."""

import json
import pathlib

import pytest
from helpers.records import make_meta, make_record

from ivc_jax.evals.running.records import RunFolder, read_all
from ivc_jax.evals.schema import Meta, Row, SchemaError, Statistics, build

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECORD_KEYS = [
    *("task", "split", "example_id", "model", "method", "keep_ratio", "prediction", "parsed"),
    *("score", "target", "question", "category", "visual_tokens", "kept_tokens", "kept", "grids"),
    *("kv_bytes", "prefill_ms", "decode_ms", "decode_steps", "seconds", "seed", "commit", "row"),
    *("cached_share", "flops", "picture", "cells", "failed", "error"),
]
META_KEYS = [
    *("model", "device", "dtype", "weights", "jax_version", "commit", "date", "seed"),
    *("batch_size", "shared_tower", "protocol", "pixel_bounds", "limit"),
    *("compiled_programs", "compiled_decodes"),
    *("statistics", "mesh", "processes", "tasks", "methods", "unreachable", "studies", "files"),
    *("rope", "image_start"),
]
LATE_KEYS = ["command", "wall_seconds", "failed_rows", "failures", "commits"]


def test_records_come_back_as_they_were_written(tmp_path):
    written = make_record(kept=[0, 3], cells={"split": "dev"}, prediction="é\n")
    folder = RunFolder(tmp_path)
    file = folder.open_records("t")
    file.append(written)
    file.close()
    assert read_all(tmp_path) == [written]
    line = (tmp_path / "records" / "t.jsonl").read_text()
    assert list(json.loads(line)) == RECORD_KEYS
    assert line.startswith('{"task":"DigitScenes_colour","split":"test",')
    assert '"prediction":"é\\n"' in line


def test_results_of_earlier_versions_are_read():
    content = json.loads((ROOT / "docs" / "default_run" / "results.json").read_text())
    rows = [build(Row, row) for row in content["rows"]]
    assert json.dumps([vars(row) for row in rows]) == json.dumps(content["rows"])
    assert Meta.from_dict(content["meta"]).statistics.batches == 18
    later = ("statistics", "mesh", "weights")
    earlier = {key: value for key, value in content["meta"].items() if key not in later}
    meta = Meta.from_dict(earlier)
    assert (meta.statistics, meta.mesh, meta.weights) == (None, None, None)  # it has no such keys
    assert earlier.items() <= meta.to_dict().items()
    assert list(meta.to_dict()) == META_KEYS + LATE_KEYS


def test_what_is_known_at_the_end_is_no_key_before():
    late = dict.fromkeys(LATE_KEYS)
    assert list(make_meta(**late).to_dict()) == META_KEYS
    paper = make_meta(**late, paper={"tables": []})
    assert list(paper.to_dict()) == [*META_KEYS, "paper"]


def test_statistics_have_their_share_on_disk():
    statistics = Statistics(compile=2.0, device=6.0, total=10.0, batches=1)
    content = make_meta(statistics=statistics).to_dict()
    assert content["statistics"]["busy_share"] == 0.75
    assert list(content["statistics"])[-1] == "busy_share"
    assert Meta.from_dict(json.loads(json.dumps(content))).statistics == statistics


def test_other_keys_are_an_error():
    content = make_meta().to_dict()
    with pytest.raises(SchemaError, match=r"no meta: .*'colour'"):
        Meta.from_dict({**content, "colour": "red"})
    del content["model"]
    with pytest.raises(SchemaError, match=r"no meta: .*'model'"):
        Meta.from_dict(content)
