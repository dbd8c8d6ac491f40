"""Agents: multi-turn episodes with tools over an engine, an endpoint or a script, and GRPO-TCR (arXiv 2510.11701).

Entry points: `AgentLoop(environment, backend)` runs many episodes at once and records each; `EngineBackend` draws token
for token from an engine and keeps what a trainer needs; `Endpoint` asks an OpenAI-compatible server; `python_tool`,
`calculator_tool`, `search_tool` and `file_tools` are tools; `training.train_agent` is GRPO-TCR on the pipeline of
`jaxllm.rl` (a config with `agent`); `open_benchmark` reads AIME, GPQA and LiveCodeBench problems, and
`evaluation.run_benchmark` samples them (`jaxllm agents evaluate`).

Not here: the paper's data and models; docs/experiments/agentic-rl.md has its questions at a small size.
"""

from jaxllm.agents.backends import Endpoint, EndpointConfig, Scripted
from jaxllm.agents.benchmarks import Benchmark, open_benchmark
from jaxllm.agents.environment import Environment, Problem, Session, Turn
from jaxllm.agents.interpreter import calculator_tool, python_tool
from jaxllm.agents.loop import AgentLoop, EpisodeRecord, LoopConfig, TooManyFailures, loop_metrics
from jaxllm.agents.policy import ChatFormat, EngineBackend, TurnLimits
from jaxllm.agents.tools import Tool, ToolLimits
from jaxllm.agents.workspace import Corpus, file_tools, search_tool

__all__ = ["AgentLoop", "Benchmark", "ChatFormat", "Corpus", "Endpoint", "EndpointConfig", "EngineBackend",
           "Environment", "EpisodeRecord", "LoopConfig", "Problem", "Scripted", "Session", "TooManyFailures", "Tool",
           "ToolLimits", "Turn", "TurnLimits", "calculator_tool", "file_tools", "loop_metrics", "open_benchmark",
           "python_tool", "search_tool"]
