"""A model directory of one's own: served, asked by an agent, its tokens and seconds counted, ended with the run."""

import os
from pathlib import Path

import pytest

from jaxllm.config import ConfigError
from jaxllm.evaluation.config import AttemptLimits, EvaluateConfig, ModelConfig
from jaxllm.evaluation.records import read_results
from jaxllm.evaluation.runner import evaluate
from tests.evaluation.helpers import agent, suite


def served(path):
    """Processes of `jaxllm.evaluation.local`."""
    found = []
    for place in Path("/proc").iterdir():
        try:
            if place.name.isdigit() and b"jaxllm.evaluation.local" in (place / "cmdline").read_bytes():
                found.append(int(place.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_a_model_directory_is_served_asked_and_ended(tmp_path):
    import jax

    from jaxllm import models
    from jaxllm.checkpoint import save_pretrained
    from tests.serving.test_server import MODEL, TOKENIZER

    params = jax.jit(models.init, static_argnums=0)(MODEL, jax.random.key(3))
    save_pretrained(params, MODEL, tmp_path / "tiny", tokenizer=TOKENIZER)
    (tmp_path / "tiny" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}")
    (tmp_path / "prices.json").write_text('{"tiny": {"second": 2.0}}')
    model = ModelConfig("tiny", "local", path=str(tmp_path / "tiny"), max_tokens=8, native=False,
                        serve={"slots": 2, "length": 128})
    before = served(tmp_path)
    config = EvaluateConfig((suite(tmp_path, 2),), (agent(tmp_path, "asks", model=True),), (model,), repeats=2,
                            prices=str(tmp_path / "prices.json"), limits=AttemptLimits(wall_s=120))
    evaluate(config, tmp_path / "out")
    records = list(read_results(tmp_path / "out"))
    assert len(records) == 4 and {r["status"] for r in records} <= {"done", "garbage"}, records
    for r in records:
        assert r["model_calls"] == 1 and r["prompt_tokens"] > 0 and 0 < r["completion_tokens"] <= 8
        assert r["cost"] == pytest.approx(2 * r["model_s"], abs=1e-3) and r["model_s"] > 0
    assert served(tmp_path) == before


def test_a_directory_that_is_no_model(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.*is not there"):
        evaluate(EvaluateConfig((suite(tmp_path, 1),), (agent(tmp_path, "asks", model=True),),
                                (ModelConfig("m", "local", path=str(tmp_path / "nowhere")),)), tmp_path / "out")
    assert not os.path.exists(tmp_path / "out")


@pytest.mark.slow
def test_a_server_that_ends_is_told(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="model m: `jaxllm serve` ended"):
        evaluate(EvaluateConfig((suite(tmp_path, 1),), (agent(tmp_path, "asks", model=True),),
                                (ModelConfig("m", "local", path=str(tmp_path / "empty")),)), tmp_path / "out")
