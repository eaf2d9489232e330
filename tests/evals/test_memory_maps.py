"""Many programs in one process: they are dropped before the system ends it."""

import jax
import numpy as np

import ivc_jax
from ivc_jax.evals.running import answerer as running
from ivc_jax.evals.running import memory_maps
from ivc_jax.evals.running.answerer import ModelAnswerer
from ivc_jax.methods import parse


def test_maps_are_counted_against_the_limit(tmp_path, monkeypatch):
    limit, used = tmp_path / "limit", tmp_path / "maps"
    monkeypatch.setattr(memory_maps, "_LIMIT", limit)
    monkeypatch.setattr(memory_maps, "_USED", used)
    used.write_text("a map\n" * 81)
    assert memory_maps.find_limit() is None
    assert not memory_maps.is_nearly_full()  # no such file: another system
    limit.write_text("100\n")
    assert memory_maps.find_limit() == 100
    assert memory_maps.is_nearly_full()
    used.write_text("a map\n" * 80)
    assert not memory_maps.is_nearly_full()


def test_dropped_programs_are_made_again_and_reported_once(tiny_hf, monkeypatch, caplog):
    answerer = ModelAnswerer(*ivc_jax.load(tiny_hf(num_hidden_layers=2)))
    device, methods = np.zeros(2), [parse("dense"), parse("uniform:layer=1")]
    ran, dropped, reported = [], [], []
    monkeypatch.setattr(answerer, "_run", lambda _, method, count: ran.append(method.name))
    monkeypatch.setattr(jax, "clear_caches", lambda: dropped.append(len(ran)))
    warm = lambda: answerer.warm_up(device, methods, 2, lambda: reported.append(len(ran)))  # noqa: E731
    warm()
    warm()
    assert sorted(ran) == ["dense", "uniform"]  # nothing is compiled twice
    monkeypatch.setattr(running, "is_nearly_full", lambda: True)
    warm()
    assert not dropped  # nothing is new, so that nothing needs room
    methods.append(parse("random:layer=1"))
    warm()
    assert dropped == [2]
    assert "the programs of 2 methods fill the memory maps" in caplog.text
    monkeypatch.setattr(running, "is_nearly_full", lambda: False)
    warm()
    assert sorted(ran) == ["dense", "dense", "random", "uniform", "uniform"]
    assert len(reported) == 3
