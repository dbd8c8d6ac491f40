"""Probes against solvers that read nothing but the prompt, at lengths, and scorers against what they must refuse."""

import collections
import re

import pytest

from jaxllm.config import ConfigError
from jaxllm.data import TaskConfig, make_task
from jaxllm.data.probes import PROBES, ProbeConfig, make_probe, skipping_rate, steps_of


def last_quoted_names(prompt):
    """The question, which stands last."""
    return prompt.rsplit("\n\n", 1)[1]


def solve_needles(prompt):
    question = last_quoted_names(prompt)
    facts = collections.defaultdict(list)
    for key, value in re.findall(r"kept for the ([a-z]+ [a-z]+(?: \d+)?) is (\S+?)\.(?=\s)", prompt):
        facts[key].append(value)
    keys = [key for key in facts if re.search(rf"\b{re.escape(key)}\b(?! \d)", question)]
    return "Answer: " + ", ".join(value for key in keys for value in facts[key])


def solve_variables(prompt):
    held = {}
    for name, copied, value in re.findall(r"Let (\w+) be (?:the same as (\w+)|(\w+))\.", prompt):
        held[name] = held[copied] if copied else value
    wanted = re.search(r"have the value (\w+)", prompt)[1]
    return "Answer: " + ", ".join(name for name, value in held.items() if value == wanted)


def solve_common(prompt):
    counts = collections.Counter(re.findall(r"\d+\. ([a-z0-9]+)", prompt.split("\n\n")[1]))
    most = int(re.search(r"Which (\d+) words", prompt)[1])
    return "Answer: " + ", ".join(word for word, _ in counts.most_common(most))


def solve_arithmetic(prompt):
    value, lines = int(re.search(r"Begin with the number (\d+)", prompt)[1]), []
    for number, words in re.findall(r"^Step (\d+): (.*)\.$", prompt, re.M):
        n = int((re.search(r"\d+", words) or [0])[0])
        value = {"add": value + n, "tak": value - n if "away" in words else max(value, n), "mul": value * n,
                 "neg": -value}[words[:3]]
        lines.append(f"Step {number}: the result is {value}")
    return "\n".join([*lines, f"Answer: {value}"])


def solve_assignments(prompt):
    held = {}
    for name, right in re.findall(r"^([a-z]\d*) = (.*)$", prompt, re.M):
        held[name] = eval(right, {}, held)  # noqa: S307 - made by the generator
    asked = re.search(r"What is ([a-z]\d*)\?", prompt)[1]
    return "\n".join([*(f"{name} = {value}" for name, value in held.items()), f"Answer: {held[asked]}"])


SOLVERS = {"variables": solve_variables, "common_words": solve_common, "arithmetic": solve_arithmetic,
           "assignments": solve_assignments}
SETTINGS = [{}, {"filler": "repeat", "values_are": "words"}, {"filler": "needles", "values_are": "codes", "keys": 9},
            {"steps": 30, "aside": 0.3, "hops": 9, "chains": 3, "length": 1500, "depth": 0.0},
            {"names_are": "words", "chains": 3, "hops": 2}]


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "repeat", "needles", "long", "words"])
@pytest.mark.parametrize("name", PROBES)
def test_a_reader_of_the_prompt_solves_it_and_nobody_scores_nothing(name, settings):
    config = ProbeConfig(name, seed=5, **settings)
    probe = make_probe(config)
    for index in range(6):
        example = probe.example(index)
        solved = SOLVERS.get(name, solve_needles)(example.prompt)
        assert probe.score(solved, example.entry) == 1 == probe.score(example.response, example.entry), solved
        assert probe.score("", example.entry) == 0 == probe.score("I do not know.", example.entry)
        words = len(example.prompt.split())
        assert config.length - (26 if name != "common_words" else 6) <= words <= config.length
        assert make_probe(config).example(index) == example  # pure
        assert make_probe(ProbeConfig(name, seed=4, **settings)).example(index + 1) == example
    assert len({probe.example(i).prompt for i in range(20)}) == 20


@pytest.mark.parametrize("name", PROBES[:-2])
def test_who_says_all_there_is_or_too_little_is_not_right(name):
    probe = make_probe(ProbeConfig(name, length=600, filler="needles"))
    example = probe.example(1)
    answers = example.entry["answers"]
    everything = re.findall(example.entry["pattern"], example.prompt)
    assert 0 < probe.score("Answer: " + " ".join(everything), example.entry) < 0.9
    if len(answers) > 1:
        part = "Answer: " + ", ".join(answers[1:])
        assert probe.score(part, example.entry) == pytest.approx(1 - 1 / len(answers))
        assert probe.score("Answer: " + ", ".join(reversed(answers)), example.entry) == 1
    assert probe.score(f"I think of {', '.join(answers)}.\n**Answer:** {everything[-1]}", example.entry) < 1


@pytest.mark.parametrize("name", ["arithmetic", "assignments"])
def test_steps_are_counted(name):
    probe = make_probe(ProbeConfig(name, steps=6, length=0))
    example = probe.example(2)
    lines = example.response.split("\n")
    full = steps_of(example.response, example.entry)
    assert (full.required, full.written, full.right, full.skipped) == (6, 6, 6, 0)
    short = "\n".join([lines[0], lines[3], lines[-1]])
    some = steps_of(short, example.entry)
    assert (some.written, some.right) == (2, 2) and probe.score(short, example.entry) == 1  # right without thought
    wrong = re.sub(r"-?\d+$", "777", lines[1], flags=re.M)
    found = steps_of("\n".join([lines[0], wrong, lines[-1]]), example.entry)
    assert (found.written, found.right) == (2, 1)
    none = steps_of(lines[-1], example.entry)
    assert (none.written, none.right, none.skipped) == (0, 0, 1)
    assert skipping_rate([full, some, none]) == pytest.approx(10 / 18) and skipping_rate([]) != skipping_rate([])
    spoken = example.response.replace("\n", ".\n- ")
    assert steps_of(spoken, example.entry).right == 6


def test_results_stay_small_and_both_ways_hang_together():
    for name in ("arithmetic", "assignments"):
        probe = make_probe(ProbeConfig(name, steps=40, largest=50, length=0))
        for index in range(10):
            assert all(abs(value) <= 50 for _, value in probe.example(index).entry["steps"])
            assert len(probe.example(index).entry["steps"]) == 40


def test_lengths_in_what_is_counted_and_depth():
    letters = make_probe(ProbeConfig("needle", length=2000), count=len)
    assert all(1850 <= len(letters.example(i).prompt) <= 2000 for i in range(5))
    for depth, low, high in ((0.0, 0.0, 0.2), (1.0, 0.8, 1.0), (0.5, 0.35, 0.65)):
        example = make_probe(ProbeConfig("needle", length=800, depth=depth)).example(0)
        assert low <= example.prompt.find(example.entry["answers"][0]) / len(example.prompt) <= high
    with pytest.raises(ConfigError, match="probe.length=50: without any filler"):
        make_probe(ProbeConfig("common_words", length=50)).example(0)


def test_a_probe_is_a_task_by_name():
    task = make_task(TaskConfig("probe", seed=7, probe=ProbeConfig("variables", length=200, seed=99)))
    assert task.example(1) == make_probe(ProbeConfig("variables", length=200, seed=8)).example(0)
    assert task.score(task.example(0).response, task.example(0).entry) == 1 and task.pauses == ()


@pytest.mark.parametrize("given, said", [({"name": "needles"}, "probe.name"), ({"queries": 9}, "probe.queries"),
                                         ({"depth": 2}, "probe.depth"), ({"other_times": 20}, "other_times"),
                                         ({"name": "variables", "names_are": "words", "hops": 99}, "hops=")])
def test_bad_settings(given, said):
    with pytest.raises(ConfigError, match=said):
        ProbeConfig(**{"name": "needle", **given})
