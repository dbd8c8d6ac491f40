"""Tokenizers: slow-format directories against transformers' own tokenizer, and errors that name the file."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from jaxllm.config import ConfigError
from jaxllm.data import character_tokenizer, load_tokenizer

TEXTS = ["Hello, world! It's 2024's\n\n  third   test: naïve café  ", "<|mask|>x<|im_end|>",
         "def f(x):\n\treturn x+12\n", "Cafe\u0301 \u4f60\u597d  end "]
ADDED = ("<|endoftext|>", "<|im_end|>", "<|mask|>")


@pytest.fixture
def slow(tmp_path):
    """A directory as Dream publishes it: vocab.json, merges.txt, added_tokens.json."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.train_from_iterator(TEXTS * 3, trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    bpe.model.save(str(tmp_path))
    first = bpe.get_vocab_size()
    (tmp_path / "added_tokens.json").write_text(json.dumps({t: first + i for i, t in enumerate(ADDED)}))
    (tmp_path / "config.json").write_text('{"model_type": "Dream"}')
    return tmp_path


def test_slow_directory_gives_the_ids_of_transformers(slow):
    from transformers import AddedToken, Qwen2Tokenizer

    vocab = json.loads((slow / "vocab.json").read_text())
    lines = (slow / "merges.txt").read_text().splitlines()
    merges = [tuple(line.split()) for line in lines if not line.startswith("#")]
    theirs = Qwen2Tokenizer(vocab=vocab, merges=merges, unk_token=None)
    theirs.add_tokens([AddedToken(t, special=True, normalized=False) for t in ADDED])
    ours = load_tokenizer(slow)
    for text in TEXTS:
        assert ours.encode(text).ids == theirs(text)["input_ids"]
    plain = TEXTS[0]
    assert ours.decode(ours.encode(plain).ids) == plain


def test_errors_name_the_file(slow, tmp_path):
    (slow / "config.json").write_text('{"model_type": "llada"}')
    with pytest.raises(ConfigError, match=r"tokenizer.json: missing tokenizer.*'llada'"):
        load_tokenizer(slow)
    (slow / "config.json").write_text('{"model_type": "Dream"}')
    (slow / "added_tokens.json").write_text('{"<|mask|>": 7}')
    with pytest.raises(ConfigError, match="added_tokens.json.*should have id 7"):
        load_tokenizer(slow)
    (slow / "merges.txt").unlink()
    with pytest.raises(ConfigError, match="merges.txt"):
        load_tokenizer(slow)
    (slow / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="not a tokenizer.json"):
        load_tokenizer(slow)


def test_characters_and_words_come_back_as_they_were():
    tokenizer = character_tokenizer(["<pad>", "<end>", '{"name": "'])
    text = '12 * 3<end>{"name": "x"} ~'
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert len(ids) == 6 + 1 + 1 + len('x"} ~') and max(ids) < tokenizer.get_vocab_size() == 3 + 95
    assert tokenizer.encode("é").ids == [0]


def test_a_vocabulary_must_fit_the_models():
    from jaxllm.data import check_vocabulary

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 7}, unk_token="a"))  # two tokens, eight ids
    check_vocabulary(tokenizer, 8)
    with pytest.raises(ConfigError, match="model.vocab_size=7: the tokenizer has 2 tokens with ids below 8"):
        check_vocabulary(tokenizer, 7)


def test_lengths_saved_with_a_tokenizer_are_not_applied(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=5)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode("a a a").ids == [0, 0, 0]
