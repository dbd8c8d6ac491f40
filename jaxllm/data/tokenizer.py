"""Tokenizers from a `tokenizer.json`, and a small word-level one built from a task's own text."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from jaxllm.config import ConfigError

SPECIAL_TOKENS = ("<|mask|>", "<|endoftext|>", "<|unk|>")

# Numbers keep the brackets and signs that touch them, so that one cell of a JSON board is one token and
# tells where its row begins and ends, and boards follow each other at one distance; words and other
# signs stand alone.
PIECES = r"\[*\d+[\],:.]*|[A-Za-z]+|[^\sA-Za-z\d]"


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a model directory or a `tokenizer.json` file.

    Raises:
      ConfigError: there is no such file, or it is not a tokenizer.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "tokenizer.json"
    if not file.is_file():
        raise ConfigError(f"{file}: missing tokenizer; put the model's tokenizer.json there")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as err:  # the library raises bare Exception
        raise ConfigError(f"{file}: not a tokenizer.json ({err})") from None


def build_word_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A word-level tokenizer over the pieces of `texts`; ids are in order of frequency, then text.

    Decoding joins pieces with spaces, so text comes back up to white space.
    """
    pre = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(),
                                   pre_tokenizers.Split(Regex(PIECES), behavior="isolated")])
    tokenizer = Tokenizer(models.WordLevel(unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre  # type: ignore[assignment]
    trainer = trainers.WordLevelTrainer(special_tokens=list(SPECIAL_TOKENS))
    tokenizer.train_from_iterator(itertools.chain(texts), trainer=trainer)
    return tokenizer


def special_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a special token; `ConfigError` when the vocabulary lacks it."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ConfigError(f"tokenizer: vocabulary lacks the special token {token!r}")
    return found
