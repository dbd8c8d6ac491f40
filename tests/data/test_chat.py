"""Chats against hand-written expectations and transformers' own mask; templates that cannot be told apart refused."""

import dataclasses
import json

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from jaxllm.config import ConfigError
from jaxllm.data import ChatTemplate, DataConfig, Loader, encode_chat, load_chat_template
from jaxllm.data.chat import ChatError

DIFFERENCE = ("{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
              "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
BLOCKS = ("{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n{% generation %}"
          "{{ m.content }}<|im_end|>{% endgeneration %}{{ '\\n' }}{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}"
          "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
# As Llama 2: no generation prompt, the user's turn opens the pair, no white space between turns.
PAIRS = ("{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} "
         "</s>{% endif %}{% endfor %}")
MESSAGES = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hello you"}, {"role": "user", "content": "bye"},
            {"role": "assistant", "content": "so long"}]
# (piece, learned), written by hand.
EXPECTED = [
    ("<s>", 0), ("<|im_start|>", 0), ("system", 0), ("\n", 0), ("be", 0), (" ", 0), ("kind", 0), ("<|im_end|>", 0),
    ("\n", 0), ("<|im_start|>", 0), ("user", 0), ("\n", 0), ("hi", 0), ("<|im_end|>", 0), ("\n", 0),
    ("<|im_start|>", 0), ("assistant", 0), ("\n", 0), ("hello", 1), (" ", 1), ("you", 1), ("<|im_end|>", 1), ("\n", 0),
    ("<|im_start|>", 0), ("user", 0), ("\n", 0), ("bye", 0), ("<|im_end|>", 0), ("\n", 0),
    ("<|im_start|>", 0), ("assistant", 0), ("\n", 0), ("so", 1), (" ", 1), ("long", 1), ("<|im_end|>", 1), ("\n", 0)]
SPECIAL = (("bos_token", "<s>"),)


def word_tokenizer(extra=()):
    pieces = [piece for piece, _ in EXPECTED]
    vocabulary = {p: i for i, p in enumerate(dict.fromkeys(["<|unk|>", "<|end|>", *pieces, "</s>", *extra]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"<\|?/?\w+\|?>|\[/?\w+\]|\s|\w+|[^\s\w]"), "isolated")
    return tokenizer


def pairs_of(tokenizer, template, messages, **more):
    ids, learned = encode_chat(tokenizer, template, messages, **more)
    assert learned.dtype == np.uint8 and len(ids) == len(learned)
    return [(tokenizer.id_to_token(i), int(x)) for i, x in zip(ids, learned, strict=True)]


@pytest.mark.parametrize("source", [DIFFERENCE, BLOCKS], ids=["difference", "blocks"])
def test_several_turns_as_written_by_hand(source):
    assert pairs_of(word_tokenizer(), ChatTemplate(source, SPECIAL), MESSAGES) == EXPECTED


def test_a_template_without_a_generation_prompt():
    found = pairs_of(word_tokenizer(("[INST]", "[/INST]")), ChatTemplate(PAIRS), MESSAGES[1:])
    assert found == [
        ("<s>", 0), ("[INST]", 0), (" ", 0), ("hi", 0), (" ", 0), ("[/INST]", 0), (" ", 1), ("hello", 1), (" ", 1),
        ("you", 1), (" ", 1), ("</s>", 1), ("<s>", 0), ("[INST]", 0), (" ", 0), ("bye", 0), (" ", 0), ("[/INST]", 0),
        (" ", 1), ("so", 1), (" ", 1), ("long", 1), (" ", 1), ("</s>", 1)]


def test_tools_and_calls_reach_the_template():
    source = ("{% for t in tools %}{{ t.name }}\n{% endfor %}{% for m in messages %}{{ m.role }}\n{% generation %}"
              "{{ m.tool_calls[0].name if m.tool_calls else m.content }}{% endgeneration %}{% endfor %}")
    found = pairs_of(word_tokenizer(), ChatTemplate(source), [
        {"role": "assistant", "content": None, "tool_calls": [{"name": "long"}]}], tools=[{"name": "kind"}])
    assert found == [("kind", 0), ("\n", 0), ("assistant", 0), ("\n", 0), ("long", 1)]


@pytest.fixture(scope="module")
def byte_level():
    """Subwords of bytes, so that tokens split characters and take spaces along."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=["<s>", "<|im_start|>", "<|im_end|>"], show_progress=False)
    tokenizer.train_from_iterator(["hello you so long naïve café assistant user system"] * 3, trainer)
    return tokenizer


@pytest.mark.parametrize("source", [BLOCKS, BLOCKS.replace("\n{% generation %}", ":{% generation %} ")])
def test_masks_of_generation_blocks_are_those_of_transformers(byte_level, source):
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_object=byte_level, bos_token="<s>", chat_template=source)
    messages = [*MESSAGES, {"role": "user", "content": "你好"}, {"role": "assistant", "content": "  naïve 你好 café\n"}]
    expected = theirs.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ids, learned = encode_chat(byte_level, ChatTemplate(source, SPECIAL), messages)
    assert ids == expected["input_ids"]
    assert learned.tolist() == expected["assistant_masks"] and 0 < learned.sum() < len(ids)


def test_turns_that_change_once_others_follow_are_refused():
    # As Qwen3: only the last answer keeps its thoughts.
    forgets = ("{% for m in messages %}{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}think {% endif %}"
               "{{ m.content }}\n{% endfor %}")
    encode_chat(word_tokenizer(), ChatTemplate(forgets), MESSAGES[1:3])
    with pytest.raises(ChatError, match=r"messages\[1\]: .*differently.*generation"):
        encode_chat(word_tokenizer(), ChatTemplate(forgets), MESSAGES[1:])
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    with pytest.raises(ChatError, match="refuses the conversation .no system turns"):
        encode_chat(word_tokenizer(), ChatTemplate(refuses), MESSAGES)


def test_dates_stand_still():
    source = '{{ strftime_now("%d %b %Y") }} {{ strftime_now("%Y-%m-%d") }}\n' + DIFFERENCE
    tokenizer = word_tokenizer(("26", "Jul", "2024", "-", "07"))
    found = pairs_of(tokenizer, ChatTemplate(source, SPECIAL), MESSAGES)
    assert "".join(piece for piece, _ in found[:12]) == "26 Jul 2024 2024-07-26\n"
    assert found[12:] == EXPECTED


def test_templates_are_found_where_tokenizers_keep_them(tmp_path):
    with pytest.raises(ConfigError, match="neither chat_template.jinja nor"):
        load_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({
        "chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": DIFFERENCE}],
        "bos_token": {"content": "<s>"}, "model_max_length": 5}))
    assert load_chat_template(tmp_path) == ChatTemplate(DIFFERENCE, SPECIAL)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "</s>", "bos_token": "other"}))
    assert load_chat_template(tmp_path).special_tokens == (("bos_token", "<s>"), ("eos_token", "</s>"))
    (tmp_path / "chat_template.jinja").write_text(BLOCKS)
    (tmp_path / "mine.jinja").write_text(PAIRS)
    assert load_chat_template(tmp_path / "tokenizer.json").source == BLOCKS
    assert load_chat_template(tmp_path / "mine.jinja").source == PAIRS
    with pytest.raises(ConfigError, match="his.jinja.*no such file"):
        load_chat_template(tmp_path / "his.jinja")


def write(tmp_path, *records):
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (tmp_path / "chat_template.jinja").write_text(DIFFERENCE)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    return str(tmp_path / "chat.jsonl")


def test_loader_packs_chats_with_their_masks(tmp_path):
    tokenizer = word_tokenizer()
    file = write(tmp_path, {"messages": MESSAGES}, {"messages": MESSAGES[1:3]}, {"messages": MESSAGES[:3]})
    loader = Loader(DataConfig(path=file, length=40, response_length=None, batch_size=2), tokenizer, 1, 0, tmp_path)
    batch = loader[0]
    whole, short = EXPECTED, [("<s>", 0), *EXPECTED[9:23]]
    rows = [[(whole, 1)], [(short, 1), (EXPECTED[:23], 2)]]  # 37 tokens; 15 and 23 of 40
    found = []
    for row in range(2):
        found.append([(tokenizer.id_to_token(int(t)), int(w), int(s)) for t, w, s in zip(
            batch.tokens[row], batch.loss_weights[row], batch.segment_ids[row], strict=True)])
    expected = []
    for row in rows:
        line = [(piece, learned, segment) for document, segment in row for piece, learned in document]
        expected.append(line + [("<|end|>", 0, 0)] * (40 - len(line)))
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("record, message", [
    ({"messages": []}, "chat.jsonl:2: messages must be a list of turns, found none"),
    ({"messages": "hi"}, "chat.jsonl:2: messages must be a list of turns, found str"),
    ({"messages": [{"role": "user"}]}, r"chat.jsonl:2: messages\[0\]: content must be text, found NoneType"),
    ({"messages": [{"from": "user", "value": "x"}]}, r"chat.jsonl:2: messages\[0\]: a turn needs a role"),
    ({"messages": MESSAGES[:2]}, "chat.jsonl:2: messages: no assistant turn"),
    ({"messages": [{"role": "assistant", "content": "\ud800"}]}, "chat.jsonl:2: the conversation holds half"),
    ({"messages": MESSAGES, "tools": "x"}, "chat.jsonl:2: tools must be a list"),
    ({"messages": MESSAGES * 2}, "chat.jsonl:2: 73 tokens exceed the row length 40; raise data.length"),
    ({"messages": MESSAGES, "system": "x"}, "chat.jsonl:2: unknown field 'system' in a chat record")])
def test_bad_chats_are_named(tmp_path, record, message):
    file = write(tmp_path, {"messages": MESSAGES}, record)
    config = DataConfig(path=file, length=40, response_length=None)
    with pytest.raises(ConfigError, match=message):
        Loader(config, word_tokenizer(), 1, 0, tmp_path)
    with pytest.warns(UserWarning, match="1 of 2"):
        Loader(dataclasses.replace(config, max_bad_share=0.5), word_tokenizer(), 1, 0, tmp_path)


def test_chats_need_a_template(tmp_path):
    file = write(tmp_path, {"messages": MESSAGES})
    with pytest.raises(ConfigError, match="data.chat_template=None: chat records need a template"):
        Loader(DataConfig(path=file, length=40, response_length=None), word_tokenizer(), 1, 0)
    named = DataConfig(path=file, length=40, response_length=None, chat_template=str(tmp_path / "chat_template.jinja"))
    assert Loader(named, word_tokenizer(), 1, 0)[0].loss_weights.sum() == 8 * 32


def test_chats_in_parquet_have_nulls_where_turns_differ(tmp_path):
    import datasets

    write(tmp_path)
    messages = [{**MESSAGES[1], "tool_calls": None}, {**MESSAGES[2], "tool_calls": [{"name": "x"}]}]
    datasets.Dataset.from_list([{"messages": messages, "tools": None}, {"messages": messages, "tools": [{"name": "y"}]}]
                               ).to_parquet(str(tmp_path / "chat.parquet"))
    config = DataConfig(path=str(tmp_path / "chat.parquet"), length=40, response_length=None)
    rows = Loader(config, word_tokenizer(), 1, 0, tmp_path)
    assert (rows[0].segment_ids == 2).any()
