"""The README's Python runs as it stands; its commands parse."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.S), ids=["agents", "decode", "generate"])
def test_library_examples_run(code):
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_commands_exist():
    from jaxllm.cli.main import COMMANDS

    for block in re.findall(r"```bash\n(.*?)```", README, re.S):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if not words:
                continue
            if words[0] == "jaxllm":
                assert words[1] in COMMANDS
            else:
                assert (ROOT / words[0]).is_file(), words[0]


def test_help_is_quick_to_import():
    code = "import sys, jaxllm.cli; jaxllm.cli.main(['--help'])"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "decode" in done.stdout
    assert not re.search(r"\| +(jax|flax|transformers|orbax)\s*$", done.stderr, re.M)
