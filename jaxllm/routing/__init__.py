"""Layer routing after Dr.LLM (arXiv 2510.12773): routes that skip and repeat layers, searched, learned and run.

A frozen model's route says how often each layer runs (0, 1, 2), once for a whole sequence; layers skipped are not
executed. Entry points: `search` (tree search, many problems in a batch), `sweep` (each row along its own route),
`fit_routers`, `PromptRouter` (an engine's decider), `open_routing`, `search_family`, `train_routers`,
`evaluate_routers`; one route for all rows is `jaxllm.models.follow`. Not reproduced: the paper's figures (its models
and data are not at hand; configs are). Differences: a real tree in place of the released chain, one decision a sequence
in place of one a token (`per_token` has that), a cache slot for each execution.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxllm.routing.config import FamilyConfig, FitConfig, RoutingConfig
    from jaxllm.routing.counts import from_path, to_path
    from jaxllm.routing.decider import PromptRouter
    from jaxllm.routing.evaluation import EvaluateConfig, evaluate_routers
    from jaxllm.routing.fit import collect, fit_routers
    from jaxllm.routing.forward import answer_chances, sweep
    from jaxllm.routing.rewards import Generated, TeacherForced
    from jaxllm.routing.router import RouterConfig, init_routers
    from jaxllm.routing.run import open_routing, search_family, train_routers
    from jaxllm.routing.saved import load_routers, save_routers
    from jaxllm.routing.tree_search import Found, SearchConfig, Verdict, search

# Name -> module; imported on first use, since most of them start JAX.
_PLACES = {
    "FamilyConfig": "config", "FitConfig": "config", "RoutingConfig": "config", "from_path": "counts",
    "to_path": "counts", "PromptRouter": "decider", "EvaluateConfig": "evaluation", "evaluate_routers": "evaluation",
    "collect": "fit", "fit_routers": "fit", "answer_chances": "forward", "sweep": "forward", "Generated": "rewards",
    "TeacherForced": "rewards", "RouterConfig": "router", "init_routers": "router", "open_routing": "run",
    "search_family": "run", "train_routers": "run", "load_routers": "saved", "save_routers": "saved",
    "Found": "tree_search", "SearchConfig": "tree_search", "Verdict": "tree_search", "search": "tree_search"}

__all__ = ["EvaluateConfig", "FamilyConfig", "FitConfig", "Found", "Generated", "PromptRouter", "RouterConfig",
           "RoutingConfig", "SearchConfig", "TeacherForced", "Verdict", "answer_chances", "collect", "evaluate_routers",
           "fit_routers", "from_path", "init_routers", "load_routers", "open_routing", "save_routers", "search",
           "search_family", "sweep", "to_path", "train_routers"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
