"""`jaxllm generate` against a loop of whole passes over the saved model, and against what it says of bad input."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.checkpoint import save_pretrained
from jaxllm.cli import main
from jaxllm.models import ModelConfig
from tests.serving.test_server import TOKENIZER

END = 256  # of the tokenizer's bytes
MODEL = ModelConfig(vocab_size=257, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, d_mlp=48,
                    max_length=128, causal=True, qkv_bias=True, eos_id=END, family="qwen2")
TEMPLATE = "{% for m in messages %}<{{ m.content }}>{% endfor %}{% if add_generation_prompt %}:{% endif %}"


@pytest.fixture(scope="module")
def params():
    return jax.jit(models.init, static_argnums=0)(MODEL, jax.random.key(3))


@pytest.fixture
def directory(params, tmp_path):
    save_pretrained(params, MODEL, tmp_path / "model", tokenizer=TOKENIZER)
    return tmp_path / "model"


@pytest.fixture
def generate(directory, tmp_path):
    """The command's lines of `--json`; temperature 0 unless overridden."""
    def run(*argv):
        file = tmp_path / "out" / "answers.jsonl"
        assert main(["generate", "--model", str(directory), "--json", str(file), "temperature=0", *map(str, argv)]) == 0
        return [json.loads(line) for line in file.read_text().splitlines()]
    return run


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))


def table(params, tokens, temperature=1.0):
    """Log-probabilities `[T, V]` by one pass without a cache."""
    whole = jnp.asarray([[*tokens, *[0] * (MODEL.max_length - len(tokens))]], jnp.int32)
    return log_softmax(models.apply(params, MODEL, whole).logits[0] / temperature)[:len(tokens)]


def greedy(params, text, count):
    tokens = TOKENIZER.encode(text).ids
    before = len(tokens)
    for _ in range(count):
        tokens.append(int(table(params, tokens)[-1].argmax()))
        if tokens[-1] == END:
            break
    return tokens[before:]


def text_of(tokens):
    return TOKENIZER.decode([t for t in tokens if t != END])


def test_answers_to_prompts_of_the_line_and_of_a_file(generate, params, tmp_path, capsys):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "two"}\n\n{"prompt": "three", "more": 1}\n')
    lines = generate("--prompt", "one", "--prompts", tmp_path / "prompts.jsonl", "max_tokens=9", "slots=2")
    assert [line["prompt"] for line in lines] == ["one", "two", "three"]
    shown = capsys.readouterr().out
    for line in lines:
        expected = greedy(params, line["prompt"], 9)
        assert line["token_ids"] == expected and line["text"] == text_of(expected)
        assert line["sample"] == 0 and line["reason"] == ("stop" if expected[-1] == END else "length")
        whole = TOKENIZER.encode(line["prompt"]).ids + expected
        rows = table(params, whole)[len(whole) - len(expected) - 1:]
        np.testing.assert_allclose(line["logprobs"], [rows[i, t] for i, t in enumerate(expected)], atol=1e-4)
    assert f"3 answers, {sum(len(line['token_ids']) for line in lines)} tokens" in shown


def test_samples_are_drawn_by_seed_and_place(generate, params):
    def draw(*argv):
        return generate("--prompt", "one", "--prompt", "two", "temperature=1.5", "max_tokens=6", "samples=2", *argv)

    first = draw("seed=4")
    assert [(line["prompt"], line["sample"]) for line in first] == [("one", 0), ("one", 1), ("two", 0), ("two", 1)]
    assert len({tuple(line["token_ids"]) for line in first}) == 4
    for line, alone in zip(first, draw("seed=4", "slots=1"), strict=True):
        np.testing.assert_allclose(alone.pop("logprobs"), line["logprobs"], atol=1e-4)
        assert alone == {key: value for key, value in line.items() if key != "logprobs"}
    # Seeds count up over answers: the second sample of one run is the first of another.
    assert draw("seed=5")[0]["token_ids"] == first[1]["token_ids"] != draw("seed=9")[0]["token_ids"]
    line = first[3]
    whole = TOKENIZER.encode("two").ids + line["token_ids"]
    rows = table(params, whole, 1.5)[2:]
    np.testing.assert_allclose(line["logprobs"], [rows[i, t] for i, t in enumerate(line["token_ids"])], atol=1e-4)


def test_an_answer_ends_at_any_of_the_model_s_ends(generate, params, directory):
    """Those of config.json, of generation_config.json and of the chat template's eos_token; not shown in the text."""
    free = greedy(params, "hello", 12)
    assert END not in free
    late, early = free[8], free[5]
    place = free.index(late)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [END, late]}))
    (line,) = generate("--prompt", "hello", "max_tokens=12")
    assert line["token_ids"] == free[:place + 1] and line["reason"] == "stop" and line["text"] == text_of(free[:place])
    (directory / "tokenizer_config.json").write_text(json.dumps(
        {"eos_token": TOKENIZER.id_to_token(early), "chat_template": TEMPLATE}))
    (line,) = generate("--prompt", "hello", "max_tokens=12")
    assert line["token_ids"] == free[:min(free.index(early), place) + 1] and line["reason"] == "stop"
    config = json.loads((directory / "config.json").read_text())
    (directory / "generation_config.json").unlink()
    (directory / "tokenizer_config.json").unlink()
    (directory / "config.json").write_text(json.dumps({**config, "eos_token_id": early}))
    (line,) = generate("--prompt", "hello", "max_tokens=12")
    assert line["token_ids"] == free[:free.index(early) + 1] and line["reason"] == "stop"


def test_stop_texts_and_chats(generate, params, directory):
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    free = greedy(params, "<hi>:", 12)
    (line,) = generate("--chat", "--prompt", "hi", "max_tokens=12")
    assert line["prompt"] == "hi" and line["token_ids"] == free
    stop = next(text for i in range(3, 12) if len(text := TOKENIZER.decode([free[i]])) == 1 and text != "\ufffd")
    (line,) = generate("--chat", "--prompt", "hi", "max_tokens=12", f"stop=[{json.dumps(stop)}]")
    count = next(i for i in range(1, 13) if stop in TOKENIZER.decode(free[:i]))
    assert line["token_ids"] == free[:count] and line["reason"] == "stop"


def test_answers_fill_what_the_model_reads(generate):
    (line,) = generate("--prompt", "x" * 120, "max_tokens=50")
    assert len(line["token_ids"]) == 8 or line["reason"] == "stop"


@pytest.mark.parametrize(("argv", "words"), [
    (["--prompt", "a", "temprature=0"], "temperature"), (["--prompt", "a", "temperature=-1"], "0 (greedy)"),
    (["--prompt", "a", "max_tokens=0"], "max_tokens=0"), (["--prompt", "a", "max_tokens=many"], "max_tokens"),
    (["--prompt", "a", "length=999"], "length=999"), (["--prompt", "a", "top_p=0"], "top_p"), ([], "--prompt TEXT"),
    (["--prompt", ""], "empty prompt"), (["--prompt", "x" * 128], "128 tokens"), (["--prompt", "a", "--chat"], "chat"),
    (["--prompts", "nowhere.jsonl"], "nowhere.jsonl"),
])
def test_bad_input_is_one_line(capsys, directory, argv, words):
    assert main(["generate", "--model", str(directory), *argv]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and words in err


def test_models_that_cannot_be_used_are_refused(capsys, directory, tmp_path):
    def fails(model):
        assert main(["generate", "--model", str(model), "--prompt", "a"]) == 2
        return capsys.readouterr().err

    assert "no such model directory" in fails(tmp_path / "nowhere")
    (directory / "tokenizer.json").rename(directory / "other.json")
    assert "tokenizer" in fails(directory)
