"""Training checkpoints by orbax: state, step (which is the data cursor and the RNG's), atomic, keep-last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax


class Checkpointer:
    """Saves and restores a training state under `directory/STEP/`.

    Orbax writes each step aside and renames it when whole, so a killed run leaves no half checkpoint.
    """

    def __init__(self, directory: str | Path, keep: int = 3) -> None:
        """Open (or make) `directory`, keeping the last `keep` steps."""
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._manager = ocp.CheckpointManager(
            Path(directory).absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True))

    def save(self, step: int, state: Any) -> None:
        """Save `state` (any pytree of arrays) as step `step`; returns before the write is done."""
        self._manager.save(step, args=self._ocp.args.StandardSave(state))

    def latest(self) -> int | None:
        """The newest whole step, or None."""
        return self._manager.latest_step()

    def restore(self, step: int, abstract_state: Any, shardings: Any) -> Any:
        """Restore step `step` onto `shardings` (trees of the state's structure)."""
        target = jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), abstract_state,
                              shardings)
        return self._manager.restore(step, args=self._ocp.args.StandardRestore(target))

    def close(self) -> None:
        """Wait for pending writes."""
        self._manager.wait_until_finished()
        self._manager.close()
