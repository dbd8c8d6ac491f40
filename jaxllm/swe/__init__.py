"""Software engineering after Kimi-Dev (arXiv 2509.23045): instances, patches, tests that judge them, mined faults.

Entry points: `read_instances` (SWE-bench's format), `grade` (a patch by an instance's tests, in `sandbox_for_tests()`,
runs kept in a `RunCache`), `read_edit` and the prompts of the two roles, `bugfixer_reward`, `testwriter_reward`,
`self_play` (test-time selection, its `scores` and `best`), `mine` (`jaxllm swe mine toolz --out DIR`), `pack` and
`unpack` (mined tasks in a small file). For models of 1-10M parameters the closed form of site and operator:
`jaxllm.swe.sites` and `closed` (what is read and said), `examples` (for SFT), `judging` (`Judge`, `PatchReward`),
`replay` (RL with positive samples kept), `playing` (both roles and self-play), `turns` (the multi-turn form).

Not reproduced: the paper's model, its data and its containers; instances are mined from pure-Python packages, and run
without root or Docker. Tested code shares a process with pytest, as in SWE-bench: forged passes are found by counter-
tests (`jaxllm.swe.counter`), except by code that tells those from the tests they are made of. Edits of the closed form
are run many to an interpreter (`run_many`), which is for code that means no harm.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxllm.swe.blocks import apply_blocks, read_blocks
    from jaxllm.swe.diffs import PatchError, apply_diff, write_diff
    from jaxllm.swe.grading import Grade, RunCache, grade
    from jaxllm.swe.instances import Instance, read_instances, write_instances
    from jaxllm.swe.mining import MineConfig, mine
    from jaxllm.swe.normal import normal_patch
    from jaxllm.swe.packing import pack, unpack
    from jaxllm.swe.recipes import Recipe, open_recipe
    from jaxllm.swe.roles import bugfixer_reward, edit_prompt, localisation_prompt, read_edit, testwriter_reward
    from jaxllm.swe.running import TestPlan, TestRun, run_tests, sandbox_for_tests
    from jaxllm.swe.selfplay import best, majority, scores, self_play

# name -> its module; loaded when asked for.
_PLACES = {
    "apply_blocks": "blocks", "read_blocks": "blocks", "PatchError": "diffs", "apply_diff": "diffs",
    "write_diff": "diffs", "Grade": "grading", "RunCache": "grading", "grade": "grading", "Instance": "instances",
    "read_instances": "instances", "write_instances": "instances", "MineConfig": "mining", "mine": "mining",
    "normal_patch": "normal", "pack": "packing",
    "unpack": "packing", "Recipe": "recipes", "open_recipe": "recipes", "bugfixer_reward": "roles",
    "edit_prompt": "roles", "localisation_prompt": "roles", "read_edit": "roles", "testwriter_reward": "roles",
    "TestPlan": "running", "TestRun": "running", "run_tests": "running", "sandbox_for_tests": "running",
    "best": "selfplay", "majority": "selfplay", "scores": "selfplay", "self_play": "selfplay"}

__all__ = ["Grade", "Instance", "MineConfig", "PatchError", "Recipe", "RunCache", "TestPlan", "TestRun", "apply_blocks",
           "apply_diff", "best", "bugfixer_reward", "edit_prompt", "grade", "localisation_prompt", "majority", "mine",
           "normal_patch", "open_recipe", "pack", "read_blocks", "read_edit", "read_instances", "run_tests",
           "sandbox_for_tests", "scores", "self_play", "testwriter_reward", "unpack", "write_diff",
           "write_instances"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
