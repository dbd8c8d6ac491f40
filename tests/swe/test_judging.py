"""Verdicts on edits of the closed form, the reward made of them, and the multi-turn form; by a scripted policy."""

import dataclasses
import random

import pytest

from jaxllm.rl.rewards import Sample
from jaxllm.swe import judging
from jaxllm.swe.closed import as_text, brief, tokens_of
from jaxllm.swe.diffs import write_diff
from jaxllm.swe.hiding import hide_tests
from jaxllm.swe.instances import Instance, write_instances
from jaxllm.swe.judging import Edit, Judge, PatchReward
from jaxllm.swe.mutation import inverse
from jaxllm.swe.playing import Package, item_of
from jaxllm.swe.recipes import Recipe
from jaxllm.swe.sites import allowed_replies, edit_choice
from jaxllm.swe.trees import write_archive
from jaxllm.swe.turns import TURNS, Desk, demonstration

CORE = "tests/test_core.py"
FAIL = (f"{CORE}::test_add", f"{CORE}::TestMore::test_unit")
GOOD = (f"{CORE}::test_half", f"{CORE}::test_first[1]")
RECIPE = Recipe("lib", "1.0", "0" * 64, ("lib",), ("tests",), modules=("lib",))


@pytest.fixture
def instance(repo, plan, tmp_path):
    write_archive(tmp_path / "repo.tar.gz", repo)
    broken = {**repo, "lib/core.py": repo["lib/core.py"].replace(b"a + b", b"a - b")}
    given, label = hide_tests(broken, FAIL), inverse(broken["lib/core.py"], repo["lib/core.py"])
    about = {"path": "lib/core.py", "function": "add", "split": "train", "mended_by": {
        "start": label[0].start, "end": label[0].end, "operator": label[1]}}
    return Instance("lib-1", f"lib: 2 tests fail.\n\n`{FAIL[0]}`\n\n    assert add(2, 3) == 5\n",
                    write_diff(broken, repo), write_diff(given, broken), FAIL, GOOD,
                    str(tmp_path / "repo.tar.gz"), write_diff(repo, given), "lib", plan, about)


def test_verdicts_are_those_of_the_tests_and_made_once(sandbox, instance, tmp_path):
    judge = Judge(sandbox, tmp_path / "verdicts.jsonl")
    source = instance.tree()["lib/core.py"]
    edits = [Edit(instance, "lib/core.py", source.replace(*pair)) for pair in (
        (b"a - b", b"a + b"), (b"a - b", b"b - a"), (b"a - b", b"b + a"), (b"x", b"x"), (b"a - b", b"a + b # why"))]
    edits.append(Edit(instance, "lib/core.py", source.replace(b"a - b", b"b + a").replace(b"// 2", b"* 2")))
    assert judge.resolved(edits) == [True, False, True, False, True, False]
    assert judge.hits == 1 and judge.runs == 4 + 1, "only b + a turns the tests that must turn, and meets the others"
    again = Judge(sandbox, tmp_path / "verdicts.jsonl")
    assert again.resolved(edits) == judge.resolved(edits) and (again.runs, again.hits) == (0, 6)


def test_reward_reads_what_the_policy_said(sandbox, instance, tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "sandbox_for_tests", lambda workers: sandbox)
    write_instances(tmp_path / "instances.jsonl", [instance])
    tokens = tokens_of()
    entry = {"instance_id": "lib-1", "path": "lib/core.py", "function": "add"}
    choice = edit_choice(tokens, instance.tree(), "lib/core.py", "add", brief(instance.problem_statement))
    replies = [as_text(tokens, reply) for reply in allowed_replies(tokens, choice)]
    samples = [Sample("", text, entry) for text in [*replies, "", "<m0> <end>", "words that are none"]]
    found = PatchReward(str(tmp_path / "instances.jsonl"))(samples)
    assert sum(found) == 1.0 and found[-3:] == [0.0, 0.0, 0.0]
    assert "arithmetic_+" in replies[found.index(1.0)]


def test_a_scripted_episode(repo, instance):
    tokens, item = tokens_of(), item_of(instance, Package(RECIPE, repo))
    chat = demonstration(tokens, item, random.Random(1), astray=1.0)["messages"]
    said = [m["content"] for m in chat if m["role"] == "assistant"]
    assert [text.split()[0] for text in said] == ["<open>", "<edit>", "<submit>"]
    assert any(m["role"] == "user" and m["content"].startswith("<open>") for m in chat), "astray, and not learned"
    desk, numbers = Desk(tokens, item), {name: i for i, name in enumerate(tokens.fixed)}
    assert as_text(tokens, desk.prompt()) == chat[0]["content"]
    right, site = (next(int(w[2:-1]) for w in text.split() if w.startswith("<m")) for text in said[:2])
    assert desk.act([numbers["<edit>"], tokens.marker(0), tokens.operator("arithmetic +")])[0] == numbers["<other>"]
    shown = desk.act([numbers["<open>"], tokens.marker(right)])
    assert as_text(tokens, shown) in [m["content"] for m in chat]
    assert desk.act([numbers["<open>"], tokens.marker(90)])[0] == numbers["<other>"]
    assert desk.act([numbers["<edit>"], tokens.marker(site), tokens.operator("arithmetic +")]) == [numbers["<act>"]]
    assert desk.edit.source == repo["lib/core.py"] and not desk.submitted
    assert desk.act([numbers["<submit>"]]) is None and desk.submitted
    idle = Desk(tokens, item)
    answers = [idle.act([]) for _ in range(TURNS)]
    assert answers[-1] is None and None not in answers[:-1] and not idle.submitted
    assert demonstration(tokens, dataclasses.replace(item, functions=()), random.Random(0)) is None


@pytest.mark.slow  # compiles
def test_a_model_that_knows_nothing_goes_through_all_of_it(sandbox, repo, instance, tmp_path):
    """Random weights: both roles, self-play and the multi-turn form run to their ends."""
    import jax

    from jaxllm import models
    from jaxllm.checkpoint import save_pretrained
    from jaxllm.generation import Engine, EngineConfig
    from jaxllm.generation.loading import open_model
    from jaxllm.swe.closed import END, write_tokenizer
    from jaxllm.swe.grading import RunCache
    from jaxllm.swe.playing import Policy, localise, outcomes, play, write_checks, write_edits
    from jaxllm.swe.turns import LONGEST, run_desks

    tokens = tokens_of()
    config = models.ModelConfig(vocab_size=1280, d_model=16, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=16,
                                d_mlp=16, max_length=1024, causal=True, family="llama", eos_id=6, pad_id=0)
    save_pretrained(models.init(config, jax.random.key(0)), config, tmp_path / "model")
    write_tokenizer(tmp_path / "model", tokens)
    items = [item_of(instance, Package(RECIPE, repo))]
    policy = Policy(tmp_path / "model", slots=4)
    places = localise(policy, items, 3, 0)
    assert places == localise(policy, items, 3, 0)
    edits = write_edits(policy, items, [[("lib/core.py", "add")] * 3], 0)
    checks = write_checks(policy, items, [[("lib/core.py", "add")] * 3], 0)
    found = outcomes(items[0], edits[0], {3: play(items[0], edits[0], checks[0], RunCache(sandbox))}, Judge(sandbox))
    assert set(found) == {"greedy", "sampled", "any", "majority", "samples", "self_play_3"}
    assert found["any"] == any(found["samples"])
    params, model, _ = open_model(tmp_path / "model")
    engine = Engine(params, model, EngineConfig(slots=2, length=LONGEST, chunk=64, prompt_bucket=LONGEST,
                                                stop_ids=(tokens.fixed[END], tokens.fixed["<step>"])))
    desks = run_desks(engine, tokens, items, temperature=1.0, samples=2)
    assert len(desks[0]) == 2 and all(desk.actions <= TURNS for desk in desks[0])
