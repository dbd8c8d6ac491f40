"""One device of the eight, and programs that are compiled once for all runs of a module."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture
def one_device(monkeypatch):
    """One of the simulated devices, as most machines without accelerators have."""
    real = jax.devices
    monkeypatch.setattr(jax, "devices", lambda *a: real(*a)[:1])


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Every run makes its step anew; most of them are the same program."""
    settings = {"jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
                "jax_persistent_cache_min_compile_time_secs": 0.0, "jax_persistent_cache_min_entry_size_bytes": -1}
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
