"""Agents with HAL's interface (arXiv 2510.11977), unchanged, in a sandbox: `run(input, **kwargs)` of a directory.

`input` is `{task id: data}` of one task; what comes back is `{task id: text}`, or with an object in the text's place,
`{"answer": text, "metrics": {...}}`. There is no network in the sandbox. The model is reached through `harness.chat`,
or through the stand-ins for `openai` and `litellm` that lie beside the agent; requests come over the run's pipe.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import queue
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxllm.config import ConfigError
from jaxllm.evaluation.attempt import Outcome, Setting
from jaxllm.evaluation.channel import MOST
from jaxllm.evaluation.config import NONE, AgentConfig
from jaxllm.evaluation.models import EndpointError, LimitMet, Refused
from jaxllm.evaluation.world import ToolError
from jaxllm.sandbox import Limits, Result, Sandbox, SandboxConfig
from jaxllm.sandbox.pool import Talk

LEFT_OUT = ("__pycache__", ".git", ".venv", "node_modules")
MOST_MB = 64  # of an agent's directory
SHOWN = 4000  # characters of what an agent printed, in its trace


def agent_files(directory: str | Path) -> dict[str, bytes]:
    """All files of an agent's directory, by relative path.

    Raises:
      ConfigError: there is none, or it is too large.
    """
    root = Path(directory)
    if not root.is_dir():
        raise ConfigError(f"agent.directory={str(directory)!r}: no such directory")
    found, size = {}, 0
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if not path.is_file() or path.is_symlink() or any(part in LEFT_OUT for part in relative.parts):
            continue
        size += path.stat().st_size
        if size > MOST_MB << 20:
            raise ConfigError(f"agent.directory={str(directory)!r}: holds more than {MOST_MB} MB")
        found[str(relative)] = path.read_bytes()
    return found


@functools.cache
def beside() -> dict[str, bytes]:
    """What lies in the sandbox beside the agent."""
    within = importlib.resources.files("jaxllm.evaluation") / "within"
    return {f"harness/{name}.py": (within / f"{name}.py").read_bytes()
            for name in ("harness", "openai", "litellm")}


def sandbox_config(agent: AgentConfig) -> SandboxConfig:
    """The sandbox of an agent."""
    return SandboxConfig(least=agent.least, level=agent.level, workers=1, packages=agent.packages)


class HalRunner:
    """Runs agents of one sandbox, one at a time."""

    def __init__(self, agent: AgentConfig) -> None:
        """Start the sandbox's keeper, which keeps an interpreter warm."""
        self._agent = agent
        start = importlib.resources.files("jaxllm.evaluation") / "within" / "start.py"
        self._start = start.read_text(encoding="utf-8")
        self._files = {**beside(), **{f"agent/{name}": data for name, data in agent_files(agent.directory).items()}}
        self._sandbox = Sandbox(sandbox_config(agent))
        self._sandbox.run("pass")  # the keeper is there, the next worker warm

    def close(self) -> None:
        """End what runs."""
        self._sandbox.close()

    def run(self, setting: Setting) -> Outcome:
        """One attempt."""
        limits, pieces = setting.limits, queue.SimpleQueue[bytes | None]()
        kept = Limits(wall_s=limits.wall_s, cpu_s=limits.cpu_s, memory_mb=limits.memory_mb, address_mb=0, processes=64,
                      open_files=256, disk_mb=MOST_MB * 4, file_mb=MOST_MB * 2, files=20_000, flood_mb=MOST >> 20)
        talk = self._sandbox.talk(self._start, pieces.put, files=self._files, limits=kept)
        talk.result.add_done_callback(lambda _: pieces.put(None))
        try:
            final, broken, seconds = self._hear(setting, talk, pieces)
        except BaseException:
            self._anew()
            raise
        result = talk.result.result()
        if result.stderr.strip():
            setting.tell({"kind": "output", "text": result.stderr[-SHOWN:]})
        if broken:
            return Outcome("garbage", None, "wrote to the harness's pipe what is no message", seconds, result.level,
                           result.layers)
        return _outcome(setting.task.id, final, result, seconds)

    def _anew(self) -> None:
        """End what runs, and start another sandbox."""
        self._sandbox.close()
        self._sandbox = Sandbox(sandbox_config(self._agent))

    def _hear(self, setting: Setting, talk: Talk,
              pieces: queue.SimpleQueue[bytes | None]) -> tuple[dict[str, Any] | None, bool, float]:
        """Answer an agent until its process is gone.

        Returns:
          Its last message, whether it sent what is none, and the seconds from its start to that, by our clock.
        """
        held, final, broken = bytearray(), None, False
        begun, ended = time.perf_counter(), None
        while (piece := pieces.get()) is not None:
            if broken or final is not None:
                continue
            ended = time.perf_counter()
            held += piece
            while (message := _message(held)) is not None:
                if not isinstance(message, dict):
                    broken = True
                    self._anew()
                    break
                if message.get("do") in ("raised", "returned", "garbage"):
                    final = message
                    break
                answer = _answer(setting, message)
                if message.get("do") == "begin":
                    begun = time.perf_counter()
                if answer is not None:
                    data = json.dumps(answer).encode()
                    talk.send(b"%010d" % len(data) + data)
        return final, broken, (ended if final is not None and ended else time.perf_counter()) - begun


INVALID = object()


def _message(held: bytearray) -> Any:
    """The first whole message, taken off; None where there is none yet, `INVALID` for what is no message."""
    if len(held) < 10:
        return None
    head = bytes(held[:10])
    if not head.isdigit() or int(head) > MOST:
        return INVALID
    end = 10 + int(head)
    if len(held) < end:
        return None
    data = bytes(held[10:end])
    del held[:end]
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return INVALID


def _answer(setting: Setting, message: Mapping[str, Any]) -> dict[str, Any] | None:
    do = message.get("do")
    if do == "begin":
        kwargs = {**setting.agent.args, "benchmark_name": setting.suite}
        if setting.model_name:
            kwargs["model_name"] = setting.model_name
        if setting.effort != NONE:
            kwargs["reasoning_effort"] = setting.effort
        return {"function": setting.agent.function, "input": {setting.task.id: dict(setting.task.input)},
                "kwargs": kwargs}
    if do == "note":
        setting.tell({"kind": "note", "text": str(message.get("text"))[:SHOWN]})
        return None
    try:
        if do == "chat":
            return _chat(setting, message)
        if do == "tool":
            return {"text": run_tool(setting, str(message.get("name")), message.get("arguments"))}
    except LimitMet as error:
        return {"limit": str(error)}
    except (EndpointError, Refused, ToolError) as error:
        return {"error": str(error)}
    return {"error": f"the harness knows no request {do!r}"}


def _chat(setting: Setting, message: Mapping[str, Any]) -> dict[str, Any]:
    messages, options = message.get("messages"), message.get("options")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise Refused("messages must be a list of objects with role and content")
    reply = setting.meter.chat(messages, **(options if isinstance(options, dict) else {}))
    return {"message": dict(reply.message), "reason": reply.reason,
            "usage": {"prompt_tokens": reply.prompt, "completion_tokens": reply.completion}}


def run_tool(setting: Setting, name: str, arguments: Any) -> str:
    """A tool of the task's world, traced.

    Raises:
      ToolError: it cannot do that.
    """
    arguments = dict(arguments) if isinstance(arguments, Mapping) else {}
    event = {"kind": "call", "name": name, "arguments": arguments, "outcome": "ok"}
    try:
        if setting.world is None:
            raise ToolError("this task has no tools")
        if setting.faults is not None:
            setting.faults.strike()
        event["result"] = setting.world.call(name, arguments)
        return event["result"]
    except ToolError as error:
        event.update(outcome="failed", result=f"Error: {error}")
        raise
    finally:
        setting.tell(event)


def _outcome(id: str, final: Mapping[str, Any] | None, result: Result, seconds: float) -> Outcome:
    def made(status: Any, answer: str | None = None, error: str | None = None, metrics: Any = None) -> Outcome:
        return Outcome(status, answer, error, seconds, result.level, result.layers,
                       metrics if isinstance(metrics, dict) else {})

    if result.status == "sandbox_dead":
        return made("sandbox_dead", error=result.error)
    if result.status == "timeout":
        return made("timeout", error="did not end in time")
    if final is None:
        why = {"failed": f"exit status {result.exit_code}", "killed": f"signal {result.signal}",
               "ok": "exit status 0"}.get(result.status, f"{result.status} limit")
        return made("died", error=f"its process ended without an answer: {why}")
    if final["do"] != "returned":
        return made(final["do"], error=str(final.get("error")))
    return checked(id, final.get("value"), made)


def checked(id: str, value: Any, made: Any) -> Outcome:
    """What an agent returned, held against the interface."""
    if not isinstance(value, dict):
        return made("garbage", error=f"returned {type(value).__name__}, not {{task id: answer}}")
    if list(value) != [id]:
        return made("wrong_task", error=f"returned an answer to {', '.join(map(repr, list(value)[:5])) or 'no task'}, "
                    f"not to {id!r} alone")
    answer = value[id]
    metrics = answer.get("metrics") if isinstance(answer, dict) else None
    if isinstance(answer, dict):
        answer = answer["answer"] if "answer" in answer else json.dumps(answer)
    if not isinstance(answer, str):
        return made("garbage", error=f"answered with {type(answer).__name__}, not with a text")
    return made("done", answer, metrics=metrics)
