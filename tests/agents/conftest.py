"""One device of the eight, as for the runs of rl."""

from tests.rl.conftest import one_device

__all__ = ["one_device"]
