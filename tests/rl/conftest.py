"""One device of the eight."""

import jax
import pytest


@pytest.fixture
def one_device(monkeypatch):
    """One of the simulated devices, as most machines without accelerators have."""
    real = jax.devices
    monkeypatch.setattr(jax, "devices", lambda *a: real(*a)[:1])
