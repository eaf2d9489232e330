"""Compiled programs that commands keep: where, how much, and what happens where they cannot."""

import os
import pathlib

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from ivc_jax.commands.compile_cache import prune, use_compile_cache

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A cache folder of the user's, and JAX as it is without a word about its cache."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    usual = {name: getattr(jax.config, name) for name in SETTINGS}
    for name, value in zip(SETTINGS, (None, True, 1.0, 0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX decides once whether there is one
    yield tmp_path / "home"
    for name, value in usual.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compile_once():
    """Compile a program that takes no time, as if it had never been."""
    jax.clear_caches()
    return jax.jit(lambda x: x * 3 + 1)(jax.numpy.arange(7)).tolist()


def count_hits(action):
    found = []
    listen = lambda event, **_: found.append(event)  # noqa: E731
    jax.monitoring.register_event_listener(listen)
    try:
        action()
    finally:
        jax.monitoring.unregister_event_listener(listen)
    return found.count("/jax/compilation_cache/cache_hits")


def list_entries(folder):
    return sorted(path.name for path in folder.rglob("*-cache"))


def test_small_programs_are_kept_and_found_again(home):
    use_compile_cache()
    assert count_hits(compile_once) == 0
    kept = list_entries(home / "ivc_jax" / "xla")
    assert kept
    assert count_hits(compile_once) == len(kept)
    assert list_entries(home) == kept


def test_a_folder_that_is_named_comes_first(home, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "named"))
    use_compile_cache()
    compile_once()
    assert list_entries(tmp_path / "named")
    assert not home.exists()


def test_nothing_is_kept_where_it_is_switched_off(home):
    use_compile_cache(enabled=False)
    jax.config.update("jax_enable_compilation_cache", False)  # JAX_ENABLE_COMPILATION_CACHE=false
    use_compile_cache()
    compile_once()
    assert not home.exists()


@pytest.mark.parametrize("named", [False, True])
def test_a_folder_that_cannot_be_written_is_one_warning(home, monkeypatch, caplog, recwarn, named):
    """A file stands in its way: that stops a superuser too."""
    home.write_text("no folder")
    if named:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(home / "named"))
    use_compile_cache()
    assert compile_once() == [3 * number + 1 for number in range(7)]
    (record,) = caplog.records
    assert record.message.startswith("compiled programs are not kept for later runs: [Errno 20]")
    assert str(home) in record.message
    assert not recwarn.list


def test_a_user_without_a_home_is_one_warning(home, monkeypatch, caplog):
    def find_none():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(pathlib.Path, "home", find_none)
    use_compile_cache()
    compile_once()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_the_oldest_entries_go_where_there_are_too_many(tmp_path):
    sizes = {"first": 40, "second": 30, "third": 30}
    for age, (name, size) in enumerate(sizes.items()):
        path = tmp_path / f"{name}-cache"
        path.write_bytes(bytes(size))
        os.utime(path, (age, age))
    (tmp_path / "notes").write_bytes(bytes(1000))  # no entry
    prune(tmp_path, 100)
    assert len(list_entries(tmp_path)) == 3
    prune(tmp_path, 60)
    assert list_entries(tmp_path) == ["second-cache", "third-cache"]
    assert (tmp_path / "notes").exists()
    prune(tmp_path / "nowhere", 60)
