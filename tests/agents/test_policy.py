"""The engine as a backend: tokens as they were drawn, results put in, the whole rendered again the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxllm.agents import AgentLoop, ChatFormat, EngineBackend, LoopConfig, Problem, TurnLimits, calculator_tool
from jaxllm.agents.calls import write_call
from jaxllm.agents.trajectories import conversation, conversations
from jaxllm.config import ConfigError
from jaxllm.data.chat import ChatTemplate, encode_chat, render_prompt
from jaxllm.generation import Completion, Engine, EngineConfig, Sampling
from jaxllm.rl.losses import LossConfig, policy_loss
from jaxllm.rl.rollout import make_batch
from tests.models.test_transformer import random_model

# Its tool turns are Qwen's: results stand in a user's turn, neighbours in one.
TEMPLATE = """{% if tools %}<|im_start|>system
Tools:{% for tool in tools %}
{{ tool.function.name }}{% endfor %}<|im_end|>
{% endif %}{% for message in messages %}{% if message.role == 'tool' %}\
{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}
<tool_response>
{{ message.content }}
</tool_response>{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>
{% endif %}{% else %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture(scope="module")
def form():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    tokenizer.train_from_iterator(["<tool_call> name arguments calculator expression user assistant 1000"] * 5, trainer)
    tokenizer.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>")])
    return ChatFormat(tokenizer, ChatTemplate(TEMPLATE), tokenizer.token_to_id("<|im_end|>"))


class Typing:
    """Stands for an engine: types what a script says, token for token, several steps a turn."""

    def __init__(self, form, script, length=400):
        self.config = EngineConfig(slots=4, length=length, stop_ids=(form.end_id,))
        self.version, self._form, self._script, self._open = 3, form, script, []

    def submit(self, request):
        self._open.append(request)

    @property
    def idle(self):
        return not self._open

    def cancel(self, id):
        return None

    def step(self):
        request = self._open.pop(0)
        text = self._form.tokenizer.decode(list(request.prompt), skip_special_tokens=False)
        tokens = [*self._form.tokenizer.encode(self._script(text), add_special_tokens=False).ids, self._form.end_id]
        cut = tokens[:request.max_tokens]
        n = len(cut)
        return [Completion(request.id, request.prompt, np.array(cut, np.int32), -np.arange(1, n + 1, dtype=np.float32),
                           np.full(n, self.version, np.int32), "length" if n < len(tokens) else "stop")]


class Two:
    """A problem with two calls in a turn."""

    def __len__(self):
        return 9

    def reset(self, index, seed):
        return Problem([{"role": "system", "content": "Compute."}, {"role": "user", "content": f"{index} + 1000"}],
                       [calculator_tool()], lambda turns: float(bool(turns) and turns[-1].text == "done: é"))


def twice(text):
    if "<tool_response>" in text:
        return "done: é"
    asked = text.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
    calls = [write_call("calculator", {"expression": text}) for text in (asked, "2*3")]
    return "Let me see.\n" + "".join(calls)


def play(form, script, limits=TurnLimits(), length=400, count=3, **loop):  # noqa: B008
    backend = EngineBackend(Typing(form, script, length), form, limits)
    runner = AgentLoop(Two(), backend, LoopConfig(**loop))
    found = sorted(runner.run(range(count)), key=lambda r: r.id)
    runner.close()
    return found


def test_rendering_an_episode_anew_gives_its_tokens(form):
    for record in play(form, twice):
        episode = record.kept
        assert record.end == "answer" and record.score == 1.0 and [c.text for c in record.calls] == [
            str(record.id + 1000), "6"]
        messages = [{"role": "system", "content": "Compute."}, {"role": "user", "content": f"{record.id} + 1000"},
                    {"role": "assistant", "content": record.turns[0].text},
                    *({"role": "tool", "name": "calculator", "content": c.text} for c in record.calls),
                    {"role": "assistant", "content": record.turns[1].text}]
        text = render_prompt(form.template, messages, [calculator_tool().description_for_model])
        text = text.removesuffix("<|im_start|>assistant\n").rstrip("\n")
        assert form.tokenizer.encode(text, add_special_tokens=False).ids == episode.tokens
        # Drawn are the assistant's turns with their ends, and nothing else.
        drawn = [token for token, mine in zip(episode.tokens, episode.sampled, strict=True) if mine]
        said = [t.text + "<|im_end|>" for t in record.turns]
        assert form.tokenizer.decode(drawn, skip_special_tokens=False) == "".join(said)
        assert all((p != 0) == bool(s) for p, s in zip(episode.logprobs, episode.sampled, strict=True))
        assert record.turns[0].tokens + record.turns[1].tokens == sum(episode.sampled)


def test_a_trajectory_is_learned_as_it_was_drawn(form):
    """Supervised training sees the tokens that were drawn and learns those alone."""
    tools = [calculator_tool().description_for_model]
    for record in play(form, twice):
        messages = [{"role": "system", "content": "Compute."}, {"role": "user", "content": f"{record.id} + 1000"}]
        (found,) = conversations({record.id: messages}, [record.to_dict()], tools=tools)
        ids, learned = encode_chat(form.tokenizer, form.template, found["messages"], found["tools"])
        n = len(record.kept.tokens)  # behind them there is the template's line end
        assert ids[:n] == record.kept.tokens and len(ids) == n + 1
        assert learned.tolist() == [int(mine) for mine in record.kept.sampled] + [0]
        assert conversations({record.id: messages}, [record.to_dict()], least=1.5) == []
    apart = {**record.to_dict(), "turns": [{**record.to_dict()["turns"][0], "text": ""}]}
    with pytest.raises(ConfigError, match="turn 0: its call of 'calculator' is not in its text"):
        conversation(messages, apart)


def test_limits_of_tokens(form):
    (record,) = play(form, twice, TurnLimits(turn=5), count=1)
    assert record.end == "length" and not record.calls and record.turns[0].tokens == 5
    whole = play(form, twice, count=1)[0]
    first = whole.turns[0].tokens
    put_in = len(whole.kept.response) - sum(t.tokens for t in whole.turns)
    for room, end in ((first + put_in, "context"), (first + put_in + 1, "length")):  # with and without room for a token
        (record,) = play(form, twice, TurnLimits(response=room), count=1)
        assert record.end == end and len(record.calls) == 2 and len(record.kept.response) <= room
    prompt = len(form.prompt(Two().reset(0, 0).messages, [calculator_tool().description_for_model]))
    (record,) = play(form, twice, length=prompt, count=1)
    assert record.end == "environment_error" and "leaves no room in length" in record.error
    (record,) = play(form, lambda text: write_call("calculator", {"expression": "1"}), length=prompt + 140, count=1)
    assert record.end in ("context", "length") and len(record.kept.tokens) <= prompt + 140


def test_templates_that_will_not_do(form):
    with pytest.raises(ConfigError, match="does not render a tool's result"):
        ChatFormat(form.tokenizer, ChatTemplate("{% for m in messages %}{% if m.role != 'tool' %}{{ m.content }}"
                                                "<|im_end|>{% endif %}{% endfor %}"), form.end_id)
    with pytest.raises(ConfigError, match="does not render a tool's result"):
        ChatFormat(form.tokenizer, ChatTemplate("{% for m in messages %}{{ m.content }}\n{% endfor %}"), form.end_id)


@pytest.mark.parametrize("loss", ["grpo", "cispo", "gspo"])
@pytest.mark.parametrize("aggregation", ["token", "sample"])
def test_no_gradient_comes_from_results(form, loss, aggregation):
    """Through the gradient: of all logits, those alone that drew a token move the loss."""
    record = play(form, twice, count=1)[0]
    episodes = [dataclasses.replace(record.kept, id=(0, i)) for i in range(2)]
    sampled = np.array(episodes[0].sampled, bool)
    config = LossConfig(loss=loss, aggregation=aggregation)
    batch, _ = make_batch(config, episodes, {(0, 0): 1.0, (0, 1): -1.0}, length=len(sampled), version=3)
    logits = jax.random.normal(jax.random.key(0), (2, len(sampled), 320))

    def drawn(logits):
        return jnp.take_along_axis(jax.nn.log_softmax(logits), batch.tokens[..., None], -1)[..., 0]

    batch = dataclasses.replace(batch, sampler_logprobs=drawn(logits))  # ratios of 1, which nothing clips

    def of_logits(logits):
        total, count, _ = policy_loss(drawn(logits), batch, config)
        return total / count

    moved = np.abs(np.asarray(jax.grad(of_logits)(logits))).max(-1) > 0
    assert sampled.any() and not sampled[episodes[0].prompt_length:].all()
    np.testing.assert_array_equal(moved, np.stack([sampled, sampled]))


def test_a_real_engine(form):
    """A random model's turns, whatever they are, are an episode's tokens; draws do not hang on what runs beside."""
    params, model = random_model("llama", vocab_size=320, max_length=256, num_layers=1)

    def run(at_once):
        engine = Engine(params, model, EngineConfig(slots=4, length=256, chunk=8, stop_ids=(form.end_id,)))
        backend = EngineBackend(engine, form, TurnLimits(turn=12, response=60), Sampling(1.0))
        loop = AgentLoop(Two(), backend, LoopConfig(at_once=at_once))
        found = sorted(loop.run(range(5), seed=7), key=lambda r: r.id)
        loop.close()
        return found

    records, alone = run(5), run(1)
    for record, other in zip(records, alone, strict=True):
        episode = record.kept
        assert episode.tokens == other.kept.tokens
        assert sum(episode.sampled) == sum(t.tokens for t in record.turns)
        assert record.end in ("length", "answer", "turns")
    assert len({tuple(r.kept.response) for r in records}) > 1
