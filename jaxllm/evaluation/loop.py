"""Agents by the episode loop of `jaxllm.agents`: a model, the task's tools and some of ours, turn after turn."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from jaxllm.agents.backends import Failed, Said, result_messages, tools_in_words
from jaxllm.agents.calls import ToolCall, check_call, parse_calls
from jaxllm.agents.environment import Problem, Session
from jaxllm.agents.interpreter import calculator_tool, python_tool
from jaxllm.agents.loop import AgentLoop, EpisodeRecord, LoopConfig
from jaxllm.agents.tools import Answer, CallRecord, Tool, ToolLimits, Toolset
from jaxllm.evaluation.attempt import Outcome, Setting
from jaxllm.evaluation.models import EndpointError, LimitMet, Refused
from jaxllm.evaluation.perturb import Faults
from jaxllm.evaluation.suites.base import Task
from jaxllm.evaluation.world import ToolError, World
from jaxllm.sandbox import Sandbox, SandboxConfig

SYSTEM = {"text": "Solve the task. End with a line that begins with \"Answer:\" and holds the final answer alone.",
          "code": "Complete the function. Give the whole function in one fenced block of Python.",
          "shop": "Buy what is asked for with the tools, at most at its price, and end with a few words once it "
                  "is done.",
          "guessing": "Play with the tool until the group is right or the game is over, and end with a few words then.",
          "repo": "Mend the fault in the repository with the tools, without a change to its tests. End with a few "
                  "words once it is mended; or, in place of edits, with a unified diff."}
FINAL = re.compile(r"^\W*(?:final )?answer\W*:[\s*]*", re.I | re.M)


class LoopRunner:
    """Runs episodes, one at a time."""

    def __init__(self, tools: Sequence[str]) -> None:
        """Start a sandbox if a tool needs one."""
        self._names = tools
        self._sandbox = Sandbox(SandboxConfig(workers=1)) if "python" in tools else None

    def close(self) -> None:
        """End what runs."""
        if self._sandbox is not None:
            self._sandbox.close()

    def run(self, setting: Setting, native: bool) -> Outcome:
        """One attempt; `native` says whether tools go to the model in a field of their own."""
        tools = [] if setting.world is None else world_tools(setting.world, setting.task)
        tools += [python_tool(self._sandbox)] if self._sandbox is not None else []
        tools += [calculator_tool()] if "calculator" in self._names else []
        tools = tools if setting.faults is None else [faulty(tool, setting.faults) for tool in tools]
        session = Problem(first_messages(setting.task, setting.agent.system), tools, lambda turns: 0.0)
        backend = _Metered(setting, native)
        config = LoopConfig(turns=setting.agent.turns, at_once=1, workers=1, failed_least=2,
                            tools=ToolLimits(timeout_s=setting.limits.wall_s))
        loop = AgentLoop(_One(session), backend, config)
        begun = time.perf_counter()
        try:
            record = next(loop.run([0], setting.seed))
        finally:
            loop.close()
        seconds = time.perf_counter() - begun
        backend.tell(record.calls[backend.told:])
        level = self._sandbox.level if self._sandbox is not None else None
        return _outcome(record, setting.task, seconds, level)


@dataclasses.dataclass
class _One:
    """An environment of one session."""

    session: Session

    def __len__(self) -> int:
        return 1

    def reset(self, index: int, seed: int) -> Session:
        return self.session


class _Metered:
    """A backend of one conversation over an attempt's meter."""

    def __init__(self, setting: Setting, native: bool) -> None:
        self._setting, self._native = setting, native
        self._messages: list[dict[str, Any]] = []
        self._asked: list[Any] = []
        self.told = 0

    def open(self, id: Any, session: Session, tools: Toolset, seed: int) -> None:
        self._messages = [dict(m) for m in session.messages]
        self._tools, self._schemas = tools.descriptions, tools.schemas
        if self._tools and not self._native:
            first = self._messages[0]
            first["content"] = f"{first['content']}\n\n{tools_in_words(self._tools)}"

    def submit(self, id: Any) -> None:
        self._asked.append(id)

    def answer(self, id: Any, records: Sequence[CallRecord]) -> bool:
        self._messages.extend(result_messages(records))
        self.tell(records)
        return True

    def tell(self, records: Sequence[CallRecord]) -> None:
        """Put calls into the trace."""
        for r in records:
            self._setting.tell({"kind": "call", "name": r.call.name, "arguments": dict(r.call.arguments),
                                "outcome": r.outcome, "result": r.text, "seconds": round(r.seconds, 4),
                                **({"text": r.call.text} if r.call.fault else {})})
        self.told += len(records)

    def poll(self, wait_s: float) -> list[tuple[Any, Said | Failed]]:
        asked, self._asked = self._asked, []
        return [(id, self._turn()) for id in asked]

    def close(self, id: Any) -> None:
        return None

    def _turn(self) -> Said | Failed:
        tools = {"tools": self._tools} if self._tools and self._native else {}
        try:
            reply = self._setting.meter.chat(self._messages, **tools)
        except EndpointError as error:
            return Failed("endpoint_error", str(error))
        except (Refused, LimitMet) as error:  # the attempt's own end
            return Failed("context", str(error))
        message = dict(reply.message)
        self._messages.append(message)
        text = message.get("content") or ""
        calls = [_native_call(c, self._schemas) for c in message["tool_calls"]] if message.get("tool_calls") else \
            parse_calls(text, self._schemas)
        return Said(text, tuple(calls), "length" if reply.reason == "length" else "stop", reply.completion,
                    reply.retries)


def _native_call(call: Mapping[str, Any], schemas: Mapping[str, Mapping[str, Any]]) -> ToolCall:
    function = call.get("function") or {}
    made = ToolCall(str(function.get("arguments") or ""), str(function.get("name") or ""), id=call.get("id"))
    try:
        made = dataclasses.replace(made, arguments=json.loads(made.text or "{}"))
    except ValueError as error:
        return dataclasses.replace(made, fault="malformed", message=f"arguments are no JSON: {error}")
    return check_call(made, schemas)


def first_messages(task: Task, system: str) -> list[dict[str, str]]:
    """System and user message of a task."""
    system = system or (str(task.input["policy"]) if task.form == "desk" else SYSTEM[task.form])
    more = {k: v for k, v in task.input.items() if k not in ("question", "policy", "tools", "archive")}
    question = str(task.input["question"]) + (f"\n\n{json.dumps(more, ensure_ascii=False)}" if more else "")
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def world_tools(world: World, task: Task) -> list[Tool]:
    """The world's tools for the loop."""
    def tool(about: Mapping[str, Any]) -> Tool:
        def run(arguments: Mapping[str, Any]) -> Answer:
            try:
                return Answer(world.call(about["name"], arguments))
            except ToolError as error:
                return Answer(f"Error: {error}", "failed")

        return Tool(about["name"], about["description"], about["parameters"], run)

    return [tool(about) for about in task.input["tools"]]


def faulty(tool: Tool, faults: Faults) -> Tool:
    """A tool that fails at times."""
    def run(arguments: Mapping[str, Any]) -> Answer | str:
        try:
            faults.strike()
        except ToolError as error:
            return Answer(f"Error: {error}", "failed")
        return tool.run(arguments)

    return dataclasses.replace(tool, run=run)


def final_answer(text: str, form: str) -> str:
    """The answer in a model's last words: of a short one what follows the last `Answer:`, else all."""
    if form != "text":
        return text
    found = list(FINAL.finditer(text))
    return text[found[-1].end():].strip().strip("*").strip() if found else text.strip()


def _outcome(record: EpisodeRecord, task: Task, seconds: float, level: str | None) -> Outcome:
    metrics = {"end": record.end, "turns": len(record.turns), "calls": len(record.calls)}
    if record.end == "endpoint_error":
        return Outcome("endpoint_error", None, record.error, seconds, level, (), metrics)
    if any(call.outcome == "sandbox_dead" for call in record.calls):
        return Outcome("sandbox_dead", None, record.trouble, seconds, level, (), metrics)
    if record.broken:
        return Outcome("tool_broken", None, record.trouble, seconds, level, (), metrics)
    answer = final_answer(record.answer, task.form) if record.end == "answer" else None
    return Outcome("done", answer, None, seconds, level, (), metrics, None if answer is None else record.answer)
