"""Where the model of the package lies."""

from __future__ import annotations

from pathlib import Path


def shipped_model() -> Path:
    """Directory of the model in the package."""
    return Path(__file__).parents[1] / "assets" / "game-of-life"
