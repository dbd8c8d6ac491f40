"""Agents, scripts and suites for tests."""

import json
import os
from pathlib import Path

from jaxllm.evaluation.config import AgentConfig, AttemptLimits, ModelConfig, SuiteConfig

AGENTS = {
    "echo": "def run(input, **kwargs):\n    return {k: v['question'] for k, v in input.items()}\n",
    "metrics": "def run(input, **kwargs):\n    (k,) = input\n"
               "    return {k: {'answer': kwargs['benchmark_name'] + kwargs['mode'], 'metrics': {'step_count': 3}}}\n",
    "raises": "def run(input, **kwargs):\n    raise KeyError('no idea')\n",
    "hangs": "import time\ndef run(input, **kwargs):\n    time.sleep(1000)\n",
    "prints": "import sys, os\ndef run(input, **kwargs):\n    print('x' * 1000)\n    os.write(1, b'9' * 500)\n"
              "    sys.stderr.write('noise')\n    return {k: 'b' for k in input}\n",
    "forges": "import harness, os\ndef run(input, **kwargs):\n    harness._write.write(b'garbage that is no message')\n"
              "    import time; time.sleep(100)\n",
    "no_dict": "def run(input, **kwargs):\n    return 'Paris'\n",
    "no_json": "def run(input, **kwargs):\n    return {k: object() for k in input}\n",
    "number": "def run(input, **kwargs):\n    return {k: 5 for k in input}\n",
    "wrong_task": "def run(input, **kwargs):\n    return {'another': 'b'}\n",
    "exits": "import os\ndef run(input, **kwargs):\n    os._exit(3)\n",
    "memory": "def run(input, **kwargs):\n    x = [b'x' * (1 << 20) for _ in range(10000)]\n    return {}\n",
    "asks": "from openai import OpenAI\ndef run(input, **kwargs):\n    (k, v), = input.items()\n"
            "    r = OpenAI().chat.completions.create(model=kwargs['model_name'],\n"
            "        messages=[{'role': 'user', 'content': v['question']}])\n"
            "    return {k: r.choices[0].message.content}\n",
    "asks_forever": "import litellm\ndef run(input, **kwargs):\n    while True:\n"
                    "        litellm.completion(model='m', messages=[{'role': 'user', 'content': 'a b c'}])\n",
}


def agent(directory: Path, name: str, **given) -> AgentConfig:
    """A `hal` agent of `AGENTS`."""
    place = directory / "agents" / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "main.py").write_text(AGENTS[name])
    return AgentConfig(name, "hal", str(place), **{"model": False, **given})


def script(directory: Path, name: str, code: str) -> ModelConfig:
    """A scripted model: the body of `say(messages, seed, effort)`."""
    file = directory / f"{name}.py"
    file.write_text(f"import json, re\ndef say(messages, seed, effort):\n{code}")
    return ModelConfig(name, "script", script=f"{file}:say")


def suite(directory: Path, count: int = 3, name: str = "letters") -> SuiteConfig:
    """A suite of a file: question a, answer b, and so on."""
    file = directory / f"{name}.jsonl"
    lines = [{"id": f"t{i}", "question": chr(97 + i % 25), "answer": chr(98 + i % 25)} for i in range(count)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return SuiteConfig("jsonl", path=str(file))


def keep(name: str, png: bytes, tmp_path: Path) -> None:
    """Write a screenshot; with SCREENSHOTS=DIRECTORY where somebody can look at it."""
    place = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    place.mkdir(parents=True, exist_ok=True)
    (place / name).write_bytes(png)


QUICK = AttemptLimits(wall_s=5.0, grace_s=2.0, memory_mb=300)
NEXT = "    return 'Answer: ' + chr(ord(messages[-1]['content']) + 1)\n"  # solves `suite`
