"""A local model that plays: its replies, and how those are ended that name no guess."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.checkpoint import save_pretrained
from jaxllm.config import ConfigError
from jaxllm.coordination.game import GameConfig
from jaxllm.coordination.play import CLOSED, CoordinationConfig, EnginePlayer, PlayConfig, _whole, play
from jaxllm.coordination.records import CoordinationError
from tests.serving.test_server import MODEL, TOKENIZER

TEMPLATE = ("{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}a:{% endif %}")
CLOSING = "\nFINAL GUESS: "


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    params = jax.jit(models.init, static_argnums=0)(MODEL, jax.random.key(3))
    save_pretrained(params, MODEL, path, tokenizer=TOKENIZER)
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path, params


def likeliest(params, tokens, most, width=96):
    """Token after token by whole passes."""
    step = jax.jit(lambda x: models.apply(params, MODEL, x).logits)
    out = []
    for _ in range(most):
        row = np.zeros((1, width), np.int32)
        row[0, :len(tokens) + len(out)] = [*tokens, *out]
        out.append(int(jnp.argmax(step(row)[0, len(tokens) + len(out) - 1])))
        if out[-1] == MODEL.eos_id:
            break
    return out


def test_replies_without_a_guess_are_closed_and_gone_on_with(directory):
    path, params = directory
    plain, closing = EnginePlayer(path, 0.0, 2, 96), EnginePlayer(path, 0.0, 2, 96, closing=CLOSING)
    for text, reply, whole in zip(("ab", "Name a number"), plain(["ab", "Name a number"], [0, 0], 6),
                                  closing(["ab", "Name a number"], [0, 0], 6), strict=True):
        prompt = TOKENIZER.encode(f"user:{text}\na:", add_special_tokens=False).ids
        said = likeliest(params, prompt, 6)
        assert reply is not None and reply == TOKENIZER.decode(said) and not _whole(reply)
        before = [*(t for t in said if t != MODEL.eos_id), *TOKENIZER.encode(CLOSING, add_special_tokens=False).ids]
        after = likeliest(params, [*prompt, *before], CLOSED)
        assert whole == TOKENIZER.decode([*before, *after])


def test_prompts_that_leave_no_room_get_no_reply(directory):
    path, _ = directory
    closing = EnginePlayer(path, 0.0, 2, 40, closing=CLOSING)
    assert [reply is None for reply in closing(["a", "a" * 60], [0, 0], 4)] == [False, True]


@pytest.mark.parametrize("reply,whole", [
    ("17", True), (" 17.\n", True), ("17 or so", False), ("", False), ("12.5", True),
    ("I think. FINAL GUESS: [8]", True), ("FINAL GUESS: none", False)])
def test_whole_replies(reply, whole):
    assert _whole(reply) is whole


def test_a_directory_goes_on_only_with_who_played_there(tmp_path):
    rules = PlayConfig(GameConfig(agents=2, rounds=2), ("plain",), games=1)
    one, other = (CoordinationConfig(rules, model="m", temperature=t) for t in (0.5, 0.7))

    def ten(prompts, seeds, max_tokens) -> list[str | None]:
        return ["10"] * len(prompts)
    play(rules, ten, tmp_path, say=lambda _: None, by=one.by)
    with pytest.raises(CoordinationError, match="temperature"):
        play(rules, ten, tmp_path, by=other.by)


def test_servers_do_not_go_on_with_a_reply():
    from jaxllm.agents.backends import EndpointConfig

    with pytest.raises(ConfigError, match="closing"):
        CoordinationConfig(endpoint=EndpointConfig("http://127.0.0.1:9", "none"), closing="x")
