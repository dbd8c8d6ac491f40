"""Eight simulated devices on the CPU, and the `--slow` and `--parity` switches."""

import os

# Before jax starts a backend: sharding tests need several devices.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8").strip()

import pytest


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run soak and kill tests too")
    parser.addoption("--parity", action="store_true", help="run comparisons with torch too")


def pytest_collection_modifyitems(config, items):
    for name in ("slow", "parity"):
        if not config.getoption(f"--{name}"):
            skip = pytest.mark.skip(reason=f"needs --{name}")
            for item in items:
                if name in item.keywords:
                    item.add_marker(skip)


@pytest.fixture(autouse=True, scope="module")
def free_compiled_programs():
    """Each compiled program holds memory maps; a whole suite of them runs into the kernel's limit and crashes."""
    yield
    import jax

    jax.clear_caches()


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Every run makes its step anew; most of a module's are the same program."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

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
