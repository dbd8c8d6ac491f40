"""The notebook runs, every shipped config loads, and the wheel carries what the package reads."""

import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

from jaxllm.cli.study import StudyConfig
from jaxllm.cli.train import open_config
from jaxllm.config import load, settings
from jaxllm.coordination.play import CoordinationConfig
from jaxllm.diffusion import shipped_model
from jaxllm.evaluation import EvaluateConfig
from jaxllm.routing import RoutingConfig

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.ipynb")), ids=lambda p: p.name)
def test_notebook_runs(path, tmp_path):
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", []))
    assert "elastic: " in printed and (tmp_path / "elastic.png").stat().st_size > 1000


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.name)
def test_config_loads(path):
    if path.parent.name == "studies":
        study = load(StudyConfig, path)
        for arm in (*study.arms.values(), (study.before,)):
            assert all((ROOT / part.config).is_file() for part in arm if part is not None and part.config)
        return
    if path.parent.name == "evaluation":
        evaluation = load(EvaluateConfig, path)
        assert all((ROOT / agent.directory).is_dir() for agent in evaluation.agents if agent.kind == "hal")
        return
    if path.parent.name == "coordination":
        assert load(CoordinationConfig, path).play.games > 0
        return
    if path.parent.name == "routing":
        assert load(RoutingConfig, path).families
        return
    # A config that goes on from a run is tried with the shipped model in its place, unless it says what it expects.
    given = settings(path)[0]
    if "preset" in given.get("model", {}):
        assert open_config(path, [], elsewhere=True)[0].total_steps > 0
        return
    start = [f"init_from={shipped_model()}"] if "init_from" in given else []
    start += ["model.causal=true"] if start and "prompts" in given else []
    config, _ = open_config(path, start)
    assert config.total_steps > 0


def test_wheel_carries_the_shipped_model(tmp_path):
    pytest.importorskip("hatchling", reason="needs hatchling to build without the network")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w",
                    str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("jaxllm-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in ("model.safetensors", "config.json", "tokenizer.json", "task.json", "README.md"):
        assert f"jaxllm/assets/game-of-life/{name}" in names
    assert "jaxllm/cells/templates.yaml" in names
    assert any(n.endswith("licenses/LICENSE") for n in names) and not any(n.startswith("tests/") for n in names)
    assert sum(i.file_size for i in zipfile.ZipFile(wheel).infolist() if "/assets/" in i.filename) < 16 * 2**20
