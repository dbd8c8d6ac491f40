"""Eight simulated devices on the CPU, and the `--slow` and `--parity` switches."""

import os
from importlib.metadata import version

import pytest


def _flag(name: str, value: str) -> None:
    """An XLA flag, unless the environment has it."""
    flags = os.environ.get("XLA_FLAGS", "")
    if name not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{name}={value}".strip()


# Before jax starts a backend: sharding tests need several devices.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_flag("xla_force_host_platform_device_count", "8")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run soak and kill tests too")
    parser.addoption("--parity", action="store_true", help="run comparisons with torch too")


def pytest_configure(config):
    """Tests' programs are many and small, so that most of the time goes into compiling them: do it quickly, and once.

    Programs are kept between runs, for this process, other workers and the commands that tests start; another jax or
    another program makes new ones. Soak tests run long enough to want theirs optimised.
    """
    if not config.getoption("--slow"):
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        if version("jaxlib").startswith("0.10."):  # one that does not know a flag stops; a sixth of the compile time
            _flag("xla_cpu_use_fusion_emitters", "false")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.rootpath / ".pytest_cache" / "programs"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


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
