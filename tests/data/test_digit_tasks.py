"""The small tasks against sums and products worked out here: problems, demonstrations, scorers, the environment."""

import json
import re
from collections import Counter

import pytest

from jaxllm.config import ConfigError, build
from jaxllm.data import DataConfig, Example, Loader, build_word_tokenizer, make_task
from jaxllm.data.tasks import TASKS, TaskConfig
from jaxllm.data.tasks.base import permuted

SMALL = {"addition": {}, "multiplication": {}, "running_sum": {}}
VARIANTS = [("addition", {}), ("addition", {"notations": 2}), ("addition", {"digits": 5}), ("multiplication", {}),
            ("multiplication", {"terms": 2}), ("multiplication", {"one_digit_share": 0.5}), ("running_sum", {}),
            ("running_sum", {"min_terms": 3, "max_terms": 9, "max_dither": 0})]


def task(name, seed=0, **settings):
    return make_task(build(TaskConfig, {"name": name, "seed": seed, name: settings}))


def number(digits):
    value = 0
    for digit in digits:
        value = 10 * value + int(digit)
    return value


def truth(prompt):
    """The answer's digits, from the prompt alone."""
    left = prompt.removesuffix(" =")
    if "*" in left:
        products = [number(a.split()) * number(b.split()) for a, b in (t.split(" * ") for t in left.split(" + "))]
        return list(str(sum(products)).rjust(4 if len(products) == 1 else 5, "0"))
    if "+" in left:
        a, b = (part.split() for part in left.split(" + "))
        digits, carry = [], 0
        for x, y in zip(a[::-1], b[::-1], strict=True):  # as on paper
            digits.append((int(x) + int(y) + carry) % 10)
            carry = (int(x) + int(y) + carry) // 10
        return [str(d) for d in (*digits, carry)]
    total = 0
    for digit in left.split():
        total += int(digit)
    return [str(total)[-1]]


@pytest.mark.parametrize("total", [1, 2, 3, 5, 64, 65, 8100])
def test_permutation_hits_every_problem_once(total):
    assert sorted(permuted(i, total) for i in range(total)) == list(range(total))


def test_permutation_is_fixed_and_without_pattern():
    order = [permuted(i, 8100) for i in range(8100)]
    assert order[:4] == [permuted(i, 8100) for i in range(4)]
    steps = Counter((b - a) % 8100 for a, b in zip(order, order[1:], strict=False))
    assert steps.most_common(1)[0][1] < 12  # an affine map would have a single one
    assert abs(sum(i * x for i, x in enumerate(order)) / 8100**3 - 0.25) < 0.01


@pytest.mark.parametrize("name, settings", VARIANTS)
def test_demonstrations_score_as_they_are_right_and_tokens_are_symbols(name, settings):
    made = task(name, **settings)
    examples = [made.example(i) for i in range(400)]
    tokenizer = build_word_tokenizer(t for e in examples for t in (e.prompt, e.response))
    assert tokenizer.get_vocab_size() <= 20
    right = 0
    for example in examples:
        for text in (example.prompt, example.response):
            words = text.split()
            assert all(re.fullmatch(r"\d|[A-Z]+|[+*=]", w) for w in words)
            assert tokenizer.encode(text).tokens == words
            assert tokenizer.decode(tokenizer.encode(text).ids) == text
        assert example.entry["answer"].split() == truth(example.prompt)
        json.dumps(example.entry)
        said = example.response.split()
        final = said[-1:] if name == "running_sum" else said[1:][::-1] if said[0] == "MSD" else \
            said[-len(truth(example.prompt)):]
        assert made.score(example.response, example.entry) == float(final == truth(example.prompt))
        right += final == truth(example.prompt)
    if name != "running_sum":
        assert right == 400


@pytest.mark.parametrize("name", SMALL)
def test_ranges_of_numbers_are_disjoint_sets_of_problems(name):
    sft, held, rl = (task(name, seed) for seed in (0, 3000, 3400))
    prompts = [[t.example(i).prompt for i in range(n)] for t, n in ((sft, 3000), (held, 400), (rl, 4572))]
    assert len({p for part in prompts for p in part}) == 7972
    assert held.example(0) == sft.example(3000) and sft.example(3000 + held.total) == held.example(0)


def test_all_two_digit_pairs_occur():
    made = task("multiplication")
    factors = {tuple(made.example(i).entry["factors"]) for i in range(8100)}
    assert factors == {(a, b) for a in range(10, 100) for b in range(10, 100)}


def test_addition_by_hand():
    made = task("addition")
    entry = {"answer": "9 7 5 0"}  # 123 + 456
    assert made.score("9 7 5 0", entry) == 1.0
    for text in ("", "9 7 5", "0 5 7 9", "9 7 5 0 0", "MSD 0 5 7 9", "9750", "9 7 5 0 MSD"):
        assert made.score(text, entry) == 0.0


def test_addition_in_two_notations():
    full, plain, reference = (task("addition", notations=2, verifier=v) for v in ("full", "plain", "reference"))
    examples = [full.example(i) for i in range(1000)]
    marked = [e for e in examples if e.response.startswith("MSD")]
    assert 440 < len(marked) < 560
    for i, e in enumerate(examples):
        assert e == plain.example(i) == reference.example(i)
        other = e.entry["answer"] if "MSD" in e.response else f"MSD {e.entry['answer'][::-1]}"
        assert full.score(other, e.entry) == 1.0 and reference.score(other, e.entry) == 0.0
        assert reference.score(e.response, e.entry) == 1.0
        assert full.score(e.response, e.entry) == 1.0
        assert plain.score(e.response, e.entry) == float("MSD" not in e.response)
    entry = {"answer": "9 7 5 0"}
    for text in ("MSD 9 7 5 0", "0 5 7 9", "MSD MSD 0 5 7 9", "MSD", "MSD 0 5 7 9 9"):
        assert full.score(text, entry) == plain.score(text, entry) == 0.0


def test_multiplication_demonstrations():
    made = task("multiplication")
    tool = 0
    for e in (made.example(i) for i in range(3000)):
        (a, b), answer = (p.split() for p in e.prompt.removesuffix(" =").split(" * ")), " ".join(truth(e.prompt))
        if e.pieces:
            tool += 1
            assert e.pieces == ((f"CALL {a[0]} {a[1]} {b[0]} {b[1]} RES", True), (answer, False), (answer, True))
            assert made.reply(e.pieces[0][0]) == answer
        else:
            assert e.response == f"DIRECT {answer}"
    assert 530 < tool < 670
    assert not any(task("multiplication", tool_share=0).example(i).pieces for i in range(100))


def test_multiplication_scores_the_policys_own_answer_alone():
    made, entry = task("multiplication"), {"answer": "1 9 0 4"}  # 34 * 56
    call = "CALL 3 4 5 6 RES 1 9 0 4"
    for text in (f"{call} 1 9 0 4", "DIRECT 1 9 0 4", "CALL 9 9 9 9 RES 9 8 0 1 1 9 0 4"):
        assert made.score(text, entry) == 1.0
    for text in ("", "1 9 0 4", call, "CALL 3 4 5 6 RES", f"{call} 1 9 0 5", f"{call} 1 9 0", f"{call} 1 9 0 4 4",
                 f"{call} {call} 1 9 0 4",  # more calls than products
                 "CALL 3 4 5 6 RES 1 9 0 5 1 9 0 4",  # not what the environment replies
                 "CALL 3 4 RES 0 0 0 0 1 9 0 4", "CALL 3 4 5 RES 1 9 0 4 1 9 0 4",
                 "CALL 1 2 3 4 CALL 3 4 5 6 RES 1 9 0 4 1 9 0 4", "CALL 3 4 5 6 1 9 0 4", "CALL", "CALL RES 1 9 0 4",
                 "DIRECT", "DIRECT DIRECT 1 9 0 4", f"DIRECT {call} 1 9 0 4", f"{call} DIRECT 1 9 0 4",
                 "DIRECT 1 9 0 4 CALL 3 4 5 6 RES 1 9 0 4", "DIRECT 0 0 0 0 1 9 0 4", "DIRECT 1904"):
        assert made.score(text, entry) == 0.0, text


def test_the_environment_multiplies_what_the_policy_wrote():
    made = task("multiplication")
    assert made.pauses == ("RES",)
    for a in (0, 7, 10, 99):
        for b in (3, 56, 90):
            text = f"CALL {a // 10} {a % 10} {b // 10} {b % 10} RES"
            assert number(made.reply(text).split()) == a * b and len(made.reply(text).split()) == 4
    for text in ("CALL RES", "CALL 3 4 5 RES", "CALL 3 4 5 6 7 RES", "CALL 3 4 * 6 RES", "CALL DIRECT 4 5 6 RES",
                 "CALL 34 5 6 1 RES", "CALL CALL RES"):
        assert made.reply(text) == made.error == "0 0 0 0"
    assert made.reply("CALL 1 CALL 3 4 5 6 RES") == "1 9 0 4"
    for text in ("", "RES", "DIRECT 3 4 5 6 RES", "CALL 3 4 5 6", "CALL 3 4 5 6 RES 1 9 0 4 CALL 1 1 1 1 RES"):
        assert made.reply(text) is None
    assert task("addition").reply("1 2") is None and task("addition").pauses == ()


def test_two_products_take_two_calls():
    made = task("multiplication", terms=2, tool_price=0.1)
    tools = [e for e in (made.example(i) for i in range(300)) if e.pieces]
    assert 30 < len(tools) < 95
    for e in tools:
        text = ""
        for piece, learned in e.pieces:
            if not learned:  # the demonstration's is what the environment says
                assert made.reply(text) == piece
            text = f"{text} {piece}".strip()
        assert [learned for _, learned in e.pieces] == [True, False, True, False, True]
        a, b, c, d = e.entry["factors"]
        assert e.prompt == f"{' '.join(str(a))} * {' '.join(str(b))} + {' '.join(str(c))} * {' '.join(str(d))} ="
        assert made.score(text, e.entry) == pytest.approx(0.8)
        assert made.score(f"{text} CALL 1 1 1 1 RES", e.entry) == 0.0
        assert made.reply(f"{text} CALL 1 1 1 1 RES") is None
        assert made.score(f"DIRECT {e.entry['answer']}", e.entry) == 1.0


def test_share_of_one_digit_factors():
    made = task("multiplication", one_digit_share=0.5, tool_price=0.25)
    examples = [made.example(i) for i in range(1000)]
    easy = [e for e in examples if max(e.entry["factors"]) < 10]
    assert 440 < len(easy) < 560 and len({tuple(e.entry["factors"]) for e in easy}) == 81
    assert all(re.fullmatch(r"0 [1-9] \* 0 [1-9] =", e.prompt) for e in easy)
    assert all(min(e.entry["factors"]) > 9 for e in examples if e not in easy)
    assert {made.score(e.response, e.entry) for e in examples if e.pieces} == {0.75}


def test_running_sums_are_worked_out_or_dithered_away():
    made = task("running_sum", min_terms=3, max_terms=5, worked_share=0.4, max_dither=9)
    assert made.thinking_end == "ANSWER"
    worked, guesses, lengths, terms = 0, [], Counter(), Counter()
    for e in (made.example(i) for i in range(2900)):
        digits = [int(d) for d in e.prompt.removesuffix(" =").split()]
        terms[len(digits)] += 1
        thoughts, answer = e.response.split(" ANSWER ") if " ANSWER " in e.response else ("", e.response.split()[1])
        thoughts, sums = thoughts.split(), []
        for d in digits:
            sums.append(str((int(sums[-1]) + d) % 10 if sums else d))
        if thoughts == sums:
            worked += 1
            assert answer == sums[-1]
        else:
            assert thoughts[:1] in ([], ["HM"]) and set(thoughts) <= {"HM", *"0123456789"}
            lengths[len(thoughts)] += 1
            guesses.append(answer == truth(e.prompt)[0])
    assert 1060 < worked < 1260 and 0.07 < sum(guesses) / len(guesses) < 0.13
    assert sorted(lengths) == list(range(10)) and min(lengths.values()) > 120
    assert sorted(terms) == [3, 4, 5] and min(terms.values()) > 850
    entry = {"answer": "7"}
    for text in ("ANSWER 7", "HM HM ANSWER 7", "1 2 ANSWER 7"):
        assert made.score(text, entry) == 1.0
    for text in ("", "7", "ANSWER", "7 ANSWER", "ANSWER 8", "ANSWER 7 7", "ANSWER 3 ANSWER 7", "ANSWER HM 7",
                 "ANSWER 7 ANSWER 7", "ANSWER 17"):
        assert made.score(text, entry) == 0.0


def test_rows_do_not_learn_what_the_environment_writes():
    made = task("multiplication", tool_share=0.5)
    examples = {e.prompt: e for e in (made.example(i) for i in range(40))}
    tokenizer = build_word_tokenizer(t for e in examples.values() for t in (e.prompt, e.response))
    config = build(DataConfig, {"size": 40, "length": 24, "response_length": None, "batch_size": 40, "task": {
        "name": "multiplication", "seed": 0, "multiplication": {"tool_share": 0.5}}})
    batch = Loader(config, tokenizer, 1, 0)[0]
    kinds = Counter()
    for tokens, weights in zip(batch.tokens.tolist(), batch.loss_weights.tolist(), strict=True):
        words = [tokenizer.id_to_token(t) for t in tokens]
        end = words.index("<|endoftext|>")
        e = examples[" ".join(words[:6])]
        assert words[6:end] == e.response.split()
        # By hand: 6 of the prompt; CALL d d d d RES, four of the result, four of the answer, end; or DIRECT, four, end.
        expected = [0] * 6 + ([1] * 6 + [0] * 4 + [1] * 5 if "CALL" in words else [1] * 6)
        assert weights == expected + [0] * (24 - len(expected))
        kinds["CALL" in words] += 1
    assert min(kinds.values()) > 5


def test_pieces_make_up_the_response():
    assert Example("p", "a b c", {}, (("a b", True), ("c", False))).response == "a b c"
    with pytest.raises(ValueError, match="do not make up"):
        Example("p", "a b c", {}, (("a", True), ("c", False)))


@pytest.mark.parametrize("settings, message", [
    ({"name": "adition"}, "task.name='adition': did you mean addition"),
    ({"addition": {"digits": 0}}, "task.addition.digits=0: must lie in 1..9"),
    ({"addition": {"notations": 3}}, "task.addition.notations=3: must be 1 or 2"),
    ({"addition": {"verifier": "some"}}, "verifier='some'"),
    ({"addition": {"digit": 2}}, "unknown key 'addition.digit'; did you mean digits"),
    ({"multiplication": {"terms": 5}}, "task.multiplication.terms=5: must lie in 1..4"),
    ({"multiplication": {"tool_share": 1.5}}, "task.multiplication.tool_share=1.5: must lie in"),
    ({"multiplication": {"terms": 2, "tool_price": 0.5}}, "task.multiplication.tool_price=0.5: must lie in"),
    ({"running_sum": {"min_terms": 9}}, "task.running_sum.min_terms=9: must lie in 1..max_terms=6"),
    ({"running_sum": {"worked_share": -1}}, "task.running_sum.worked_share"),
    ({"running_sum": {"max_dither": -1}}, "task.running_sum.max_dither=-1")])
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build(TaskConfig, settings)


def test_every_task_has_a_name():
    assert set(SMALL) < set(TASKS)
