"""Skills with exact scorers: what the base models learn beside prose, and problems held back to measure them on."""

from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxllm.data.probes import ProbeConfig, make_probe
from jaxllm.data.probes.text import ADJECTIVES, NOUNS

HELD_BACK = 10_000_000  # problems from this number on are measured on and never learned
REASONING: Any = {"name": "arithmetic", "length": 0, "largest": 20}
NEEDLE: Any = {"name": "needle", "values_are": "words"}
VARIABLES: Any = {"name": "variables", "chains": 2, "hops": 1, "names_are": "words"}
COMMON: Any = {"name": "common_words", "common": 2, "common_times": 4, "other_times": 1}
LENGTHS = {"needle": (60, 150), "variables": (80, 150), "common_words": (65, 105)}  # words, measured at both
STEPS = 4  # of the reasoning problems that are measured
VOCABULARY, SHORT = 1536, 160  # tokens; problems that are shorter are learned first


def learned() -> list[ProbeConfig]:
    """Kinds of problems to learn, of equal shares: skills by turns, at lengths and steps up to the longest."""
    out = []
    for third in range(3):
        for settings in (NEEDLE, VARIABLES, COMMON):
            short, long = LENGTHS[settings["name"]]
            out.append(ProbeConfig(**settings, length=short + (long - short) * third // 2))
        out.append(ProbeConfig(**REASONING, steps=2 + third))
    return out


def measured(count: int) -> dict[str, tuple[ProbeConfig, int]]:
    """Probes by name, and how many problems of each; of `reasoning` twice as many."""
    out = {"reasoning": (ProbeConfig(**REASONING, steps=STEPS, seed=HELD_BACK), 2 * count)}
    for settings in (NEEDLE, VARIABLES, COMMON):
        for size, length in zip(("short", "long"), LENGTHS[settings["name"]], strict=True):
            out[f"{settings['name']}_{size}"] = (ProbeConfig(**settings, length=length, seed=HELD_BACK), count)
    return out


def examples(first: int, count: int) -> Iterator[dict[str, str]]:
    """Records of prompt and response, `count` from number `first` on."""
    tasks = [make_probe(config) for config in learned()]
    for number in range(first, first + count):
        example = tasks[number % len(tasks)].example(number)
        yield {"prompt": f"{example.prompt}\n\n", "response": example.response}


def tokenizer(texts: Sequence[str]) -> Tokenizer:
    """Byte-pair tokens of texts, `<|pad|>` 0 and `<|end|>` 1; digits stand alone, and the probes' words stay whole."""
    out = Tokenizer(models.BPE())
    out.pre_tokenizer = pre_tokenizers.Sequence([  # type: ignore[assignment]
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    out.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    whole = [f"a {word}" for word in (*ADJECTIVES, *NOUNS)] * 200
    out.train_from_iterator([*texts, *whole], trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|pad|>", "<|end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return out
