"""Tokenizers from a `tokenizer.json`, and a small word-level one built from a task's own text."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from jaxllm.config import ConfigError, check
from jaxllm.files import read_json

SPECIAL_TOKENS = ("<|mask|>", "<|endoftext|>", "<|unk|>")

# Numbers keep the brackets and signs that touch them, so that one cell of a JSON board is one token and
# tells where its row begins and ends, and boards follow each other at one distance; words and other
# signs stand alone.
PIECES = r"\[*\d+[\],:.]*|[A-Za-z]+|[^\sA-Za-z\d]"


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a model directory or a `tokenizer.json` file.

    A directory without one may hold `vocab.json` and `merges.txt` (Dream, older Qwen2).

    Raises:
      ConfigError: there is no such file, or it is not a tokenizer.
    """
    file = Path(path)
    if file.is_dir():
        if not (file / "tokenizer.json").is_file() and (file / "vocab.json").is_file():
            return _byte_level_bpe(file)
        file = file / "tokenizer.json"
    if not file.is_file():
        raise ConfigError(f"{file}: missing tokenizer; put the model's tokenizer.json there")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as err:  # the library raises bare Exception
        raise ConfigError(f"{file}: not a tokenizer.json ({err})") from None
    tokenizer.no_truncation()  # some are saved with a length to cut or fill to, and would do so in silence
    tokenizer.no_padding()
    return tokenizer


# Qwen2's first split: contractions, words, single digits, signs, line ends, spaces.
_QWEN2_PIECES = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
                 r"|\s+(?!\S)|\s+")


def _byte_level_bpe(directory: Path) -> Tokenizer:
    """Qwen2's byte-level BPE from `vocab.json`, `merges.txt` and, if there, `added_tokens.json`."""
    kind = read_json(directory / "config.json").get("model_type") if (directory / "config.json").is_file() else None
    if kind not in ("Dream", "qwen2", "qwen3"):
        raise ConfigError(f"{directory / 'tokenizer.json'}: missing tokenizer; vocab.json alone is read for Dream and "
                          f"Qwen, not for model_type={kind!r}")
    try:
        tokenizer = Tokenizer(models.BPE.from_file(str(directory / "vocab.json"), str(directory / "merges.txt")))
    except Exception as err:  # the library raises bare Exception
        raise ConfigError(f"{directory}: vocab.json and merges.txt are not a BPE tokenizer ({err})") from None
    tokenizer.normalizer = normalizers.NFC()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([  # type: ignore[assignment]
        pre_tokenizers.Split(Regex(_QWEN2_PIECES), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    if (directory / "added_tokens.json").is_file():
        added = read_json(directory / "added_tokens.json")
        for token, number in sorted(added.items(), key=lambda item: item[1]):
            tokenizer.add_special_tokens([token])
            if tokenizer.token_to_id(token) != number:
                raise ConfigError(f"{directory / 'added_tokens.json'}: {token!r} should have id {number}, but "
                                  f"vocab.json puts it at {tokenizer.token_to_id(token)}")
    return tokenizer


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


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """`ConfigError` unless every id of the tokenizer is one of the model's `vocab_size`."""
    needed = max(tokenizer.get_vocab().values(), default=0) + 1
    check(needed <= vocab_size, "model.vocab_size", vocab_size,
          f"the tokenizer has {tokenizer.get_vocab_size()} tokens with ids below {needed}")


def special_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a special token; `ConfigError` when the vocabulary lacks it."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ConfigError(f"tokenizer: vocabulary lacks the special token {token!r}")
    return found


def character_tokenizer(words: Sequence[str]) -> Tokenizer:
    """One for small models: `words`, a token each, then the printable characters of ASCII.

    Others become `words[0]`. What it decodes is what was encoded.
    """
    vocabulary = {word: i for i, word in enumerate([*words, *map(chr, range(32, 127))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    return tokenizer
