"""From a config to searched routes, routers and figures; resumption; the command."""

import dataclasses
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxllm.checkpoint import save_pretrained
from jaxllm.cli import main
from jaxllm.config import ConfigError, load
from jaxllm.models import ModelConfig, apply
from jaxllm.routing.config import RoutingConfig
from jaxllm.routing.counts import to_path
from jaxllm.routing.evaluation import EvaluateConfig, decided, evaluate_routers
from jaxllm.routing.per_token import per_token_sweep
from jaxllm.routing.plots import draw
from jaxllm.routing.rewards import Generated, TeacherForced
from jaxllm.routing.router import RouterConfig, init_routers
from jaxllm.routing.run import open_routing, search_family, summarize, train_routers
from jaxllm.routing.saved import load_routers
from jaxllm.routing.tree_search import SearchConfig, edits_of, search
from tests.models.test_transformer import SHAPE, random_model

L = 4
PLANTED = [(1, 1, 1, 1), (1, 0, 2, 1), (2, 1, 0, 1)]
WORDS = ["<pad>", "<eos>", *"abcdefghijklmnopqrstuvwxyz0123456789"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A random model with a tokenizer of letters, and problems whose wanted answers some route of it gives."""
    root = tmp_path_factory.mktemp("routing")
    params, config = random_model("llama", num_layers=L, eos_id=1, pad_id=0)
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    save_pretrained(params, config, root / "model")
    tokenizer.save(str(root / "model" / "tokenizer.json"))
    rng = np.random.default_rng(0)
    run = jax.jit(lambda tokens, path: apply(params, config, tokens, path=path).logits)
    for family, count in (("seen", 12), ("other", 6)):
        lines = []
        for i in range(count):
            prompt = rng.integers(2, 38, 5 + i % 3)
            counts = PLANTED[i % 3]
            tokens = jnp.zeros((1, 8), jnp.int32).at[0, :len(prompt)].set(jnp.array(prompt))
            answer = int(jnp.argmax(run(tokens, jnp.array(to_path(counts)))[0, len(prompt) - 1, :38]))
            word = WORDS[answer] if answer > 1 else "z"
            lines.append({"prompt": " ".join(WORDS[t] for t in prompt), "answer": word})
        (root / f"{family}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "config.yaml").write_text(f"""
model: {root}/model
families:
- {{name: seen, prompts: {{path: {root}/seen.jsonl}}}}
- {{name: test, role: in, prompts: {{path: {root}/seen.jsonl}}, size: 5}}
- {{name: other, role: out, prompts: {{path: {root}/other.jsonl}}}}
end: false
max_tokens: 1
batch: 4
bucket: 8
search: {{simulations: 12}}
router: {{width: 8, windows: 4}}
fit: {{epochs: 2, validation: 0.3}}
""")
    return root


@pytest.fixture(scope="module")
def opened(place):
    return open_routing(load(RoutingConfig, place / "config.yaml"))


def test_forced_and_generated_verdicts_agree(opened):
    """The wanted answer is one token here, so that saying it is all there is to being right."""
    problems = opened.problems["seen"]
    rng = np.random.default_rng(1)
    asked = [(i % len(problems), rng.integers(0, 3, L).astype(np.int8)) for i in range(15)]
    asked = [(i, np.array(PLANTED[i % 3]) if turn % 2 or not c.any() else c) for turn, (i, c) in enumerate(asked)]
    forced = opened.evaluator(problems, opened.engine)(asked)
    assert isinstance(opened.evaluator(problems, opened.engine), TeacherForced)
    engine = opened.engine()
    said = Generated(engine, problems, opened.tokenizer, lambda p, text: text == p.entry["answer"])(asked)
    assert [v.right for v in forced] == [v.right for v in said] and len({v.right for v in forced}) == 2
    for a, b in zip(forced, said, strict=True):
        if a.right:
            assert a.score == pytest.approx(b.score, abs=1e-4)


def test_the_search_finds_what_trying_every_route_on_the_model_does(opened):
    """All skips and repeats up to two edits, each along its path by the plain forward pass: the shortest right ones."""
    problems, params, model = opened.problems["seen"], opened.params, opened.model
    tokens = np.zeros((len(problems), 8), np.int32)
    for row, problem in zip(tokens, problems, strict=True):
        assert len(problem.answer) == 1
        row[:len(problem.prompt)] = problem.prompt
    last = np.array([len(p.prompt) - 1 for p in problems])
    wanted = np.array([p.answer[0] for p in problems])
    run = jax.jit(lambda path: jax.nn.log_softmax(apply(params, model, tokens, path=path).logits[
        jnp.arange(len(problems)), last]))
    right = {}
    for counts in itertools.product(range(3), repeat=L):
        if any(counts) and edits_of(np.array(counts)) <= 2:
            chances = np.asarray(run(jnp.array(to_path(counts))))
            for i in np.flatnonzero(chances.argmax(-1) == wanted):
                right[int(i), counts] = chances[i, wanted[i]]
    config = SearchConfig(simulations=1000, most_edits=2, stop="budget", in_flight=2)
    found = dict(search(range(len(problems)), L, opened.evaluator(problems, opened.engine), 8, config))
    for i, result in found.items():
        mine = {counts: chance for (n, counts), chance in right.items() if n == i}
        assert result.right == len(mine)
        assert result.counts == min(mine, key=lambda c: (sum(c), -mine[c]), default=None)
    assert sum(r.counts is not None and not r.default for r in found.values()) >= 3


def test_routers_learn_shared_routes(opened, tmp_path):
    config = dataclasses.replace(opened.config, fit=dataclasses.replace(opened.config.fit, labels="shared", shared=1))
    shared = dataclasses.replace(opened, config=config)
    report = train_routers(shared, tmp_path)
    (chosen,) = report["shared"]
    found = search_family(shared, shared.families("train")[0], tmp_path)
    assert any(tuple(chosen["route"]) in f.routes for f in found.values())
    # All others keep every layer, or the route that puts them right.
    others = [f.counts for f in found.values() if f.counts is not None and not f.default]
    taken, none = chosen["problems"], report["search"]["seen"]["no_route"]
    assert 0 < taken <= 12 and report["labels"]["once"] >= L * (12 - taken - len(others) - none)

    file = tmp_path / "search" / "seen.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "routes"}) + "\n" for line in lines))
    with pytest.raises(ConfigError, match="fit.labels=shared"):
        train_routers(shared, tmp_path)


def test_search_train_evaluate(opened, place, tmp_path, capsys):
    (family,) = opened.families("train")
    found = search_family(opened, family, tmp_path)
    about = summarize(found)
    assert about["problems"] == 12 and about["fixed"] > 0
    assert about["default_right"] + about["fixed"] + about["no_route"] == 12
    file = tmp_path / "search" / "seen.jsonl"
    whole = file.read_text()
    # Cut off in the middle of a line, and gone on with: the same problems, the same routes.
    file.write_text(whole[:len(whole) // 2])
    assert search_family(opened, family, tmp_path) == found
    assert sorted(file.read_text().splitlines()) == sorted(whole.splitlines())
    assert search_family(opened, family, tmp_path) == found  # nothing left to do

    report = train_routers(opened, tmp_path)
    assert report["search"]["seen"] == about and sum(report["labels"].values()) == L * (12 - about["no_route"])
    saved = load_routers(tmp_path / "routers.safetensors", opened.base, L)

    result = evaluate_routers(opened, tmp_path, EvaluateConfig(random_draws=2))
    assert set(result["families"]) == {"test", "other"}
    for name, part in result["families"].items():
        assert set(part["arms"]) == {"unrouted", "routed", "static", "early exit", "random", "per token", "oracle"}
        problems = opened.problems[name]
        counts = decided(opened, problems, saved, -0.5)
        routed = opened.evaluator(problems, opened.engine)(list(enumerate(counts)))
        arm = part["arms"]["routed"]
        assert arm["accuracy"][0] == pytest.approx(np.mean([v.right for v in routed]))
        assert arm["executions"] == pytest.approx(counts.sum(1).mean()) == part["arms"]["random"]["executions"]
        assert arm["saved"][0] == pytest.approx(1 - counts.sum(1).mean() / L)
        assert part["arms"]["oracle"]["accuracy"][0] >= part["arms"]["unrouted"]["accuracy"][0]
        assert part["also_in_training"] == (5 if name == "test" else 0)
        shares = np.array(list(part["decisions"].values()))
        np.testing.assert_allclose(shares.sum(0), 1)
        assert part["generated"]["routed"]["accuracy"][0] == pytest.approx(arm["accuracy"][0])
    (tmp_path / "few").mkdir()
    shutil.copy(tmp_path / "routers.safetensors", tmp_path / "few")
    few = evaluate_routers(opened, tmp_path / "few", EvaluateConfig(random_draws=1, generate=False, oracle_problems=2))
    for name, part in few["families"].items():
        first = search_family(opened, next(f for f in opened.families("in", "out") if f.name == name), tmp_path)
        solved = [first[i].counts is not None for i in range(2)]
        assert part["arms"]["oracle"]["problems"] == 2 and part["arms"]["routed"]["problems"] == part["problems"]
        assert part["arms"]["oracle"]["accuracy"][0] == pytest.approx(np.mean(solved))
        assert part["less_unrouted"]["oracle"][0] == pytest.approx(np.mean([s - first[i].default
                                                                           for i, s in enumerate(solved)]))
    assert [p.name for p in draw(tmp_path, result)] == ["decisions.png", "accuracy.png"]
    config = str(place / "config.yaml")
    for action in ("search", "train", "evaluate"):
        assert main(["route", action, config, "--run-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "decisions.png" in out and "oracle" in out and "no route" in out
    assert main(["route", "evaluate", config, "--run-dir", str(tmp_path / "new"), "evaluate.lean=0"]) == 2
    assert "train routers first" in capsys.readouterr().err


def test_other_settings_are_refused(opened, place, tmp_path):
    (family,) = opened.families("train")
    search_family(opened, family, tmp_path)
    other = open_routing(load(RoutingConfig, place / "config.yaml", ["search.simulations=9"]))
    with pytest.raises(ConfigError, match=r"seen\.jsonl: was searched with other settings \(search\)"):
        search_family(other, other.families("train")[0], tmp_path)


@pytest.mark.parametrize("override, message", [
    ("families.0.size=99", r"families\[seen\]\.size=99: there are 12 prompts"),
    ("families.0.role=out", "need one of role train"), ("chunk=9", "chunk=9"),
    ("max_tokens=100", "the model reads 64"), ("model=nowhere", "nowhere"), ("families.0.name=../x", "names a file"),
    ("fit.gamma=0.5", "fit.gamma=0.5")])
def test_bad_configs(place, override, message):
    with pytest.raises(ConfigError, match=message):
        open_routing(load(RoutingConfig, place / "config.yaml", [override]))


def test_per_token_decisions_against_one_token_at_a_time():
    """Naive: each token's way through the layers by itself, keys kept in lists."""
    params, config = random_model("llama", num_layers=3)
    routers = init_routers(RouterConfig(width=8, windows=4), 3, config.d_model, jax.random.key(1))
    routers["out"]["bias"] = jnp.tile(jnp.array([0.2, 0.0, 0.2]), (3, 1))
    t, n = 7, 3
    tokens = jax.random.randint(jax.random.key(2), (1, t), 0, config.vocab_size)
    x, counts = per_token_sweep(params, tokens, jnp.array([n]), model=config, routers=routers, windows=4)
    assert len(np.unique(counts)) == 3
    from jaxllm.models import api
    from tests.routing.test_forward import naive_logits

    project, finish = (jax.jit(f, static_argnames="config") for f in (api.project, api.finish))
    state, tables = np.asarray(api.embed(params, config, tokens)), api.tables(config, jnp.arange(t)[None])
    for i in range(3):
        layer, router = (jax.tree.map(lambda leaf, i=i: leaf[i], tree) for tree in (params["layers"], routers))
        taken = [int(np.argmax(naive_logits(router, state[0, :n - 1], 4)[0]))] * n
        taken += [int(np.argmax(naive_logits(router, state[0, p:p + 1], 1)[0])) for p in range(n, t)]
        if i == 2:
            done = np.asarray(counts)[0, :, :2].sum(1)
            taken = [max(c, 1) if d == 0 else c for c, d in zip(taken, done, strict=True)]
        np.testing.assert_array_equal(counts[0, :, i], taken)
        for executed in (0, 1):
            q, k, v = (np.asarray(a, np.float64) for a in project(layer, config, jnp.asarray(state), tables))
            group, new = q.shape[1] // k.shape[1], np.zeros((1, t, q.shape[1], q.shape[3]), np.float32)
            for p in range(t):
                keys = [s for s in range(p + 1) if taken[s] > executed]
                if taken[p] <= executed:
                    continue
                for h in range(q.shape[1]):
                    w = np.exp(q[0, h, p] @ k[0, h // group, keys].T / np.sqrt(q.shape[3]))
                    new[0, p, h] = w / w.sum() @ v[0, h // group, keys]
            after = np.asarray(finish(layer, config, jnp.asarray(state), jnp.asarray(new)))
            state = np.where((np.array(taken) > executed)[None, :, None], after, state)
    np.testing.assert_allclose(x, state, atol=2e-5, rtol=1e-4)
    assert ModelConfig(**SHAPE).num_layers == 2
