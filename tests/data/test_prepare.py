"""The token cache: equal to reading the records, refused when stale, whole or not there at all."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import yaml

from jaxllm.cli import main
from jaxllm.config import ConfigError
from jaxllm.data import DataConfig, Loader, build_word_tokenizer, load_tokenizer, prepare
from jaxllm.data.documents import COLUMNS
from tests.data.test_chat import DIFFERENCE, MESSAGES, word_tokenizer

WORDS = "one two three four five six seven eight nine ten"
KINDS = {
    "text": [{"text": " ".join(WORDS.split()[:1 + i % 9])} for i in range(30)],
    "prompt": [{"prompt": WORDS[:3 + i], "response": "two " * (1 + i % 3)} for i in range(9)],
    "chat": [{"messages": MESSAGES}, {"messages": MESSAGES[1:3]}, {"messages": MESSAGES[:3]}],
}


@pytest.fixture
def place(tmp_path):
    """A tokenizer's directory, with a chat template."""
    (tmp_path / "tok").mkdir()
    word_tokenizer(WORDS.split()).save(str(tmp_path / "tok/tokenizer.json"))
    (tmp_path / "tok/chat_template.jinja").write_text(DIFFERENCE)
    (tmp_path / "tok/tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    return tmp_path


def write(place, records, name="data.jsonl"):
    (place / name).parent.mkdir(exist_ok=True)
    (place / name).write_text("".join(json.dumps(r) + "\n" for r in records))
    return place / name


def run(place, source, *more, out="cache"):
    return main(["data", "prepare", str(source), "--tokenizer", str(place / "tok"), "--out", str(place / out), *more])


def fails(capsys, place, *args, **more):
    capsys.readouterr()
    assert run(place, *args, **more) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("jaxllm: error: "), err
    return err


def loader(place, path, **settings):
    config = {"length": 48, "response_length": 8, "batch_size": 2, "path": str(path), **settings}
    return Loader(DataConfig(**config), load_tokenizer(place / "tok"), 1, 0, place / "tok")


def files_of(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_gives_the_batches_of_its_records(place, kind):
    source = write(place, KINDS[kind])
    assert run(place, source) == 0
    assert set(files_of(place / "cache")) == {"tokens.json", *(f"{c}.bin" for c in COLUMNS)}
    read, mapped = loader(place, source), loader(place, place / "cache")
    for step in (0, 3, 8):
        for name in ("tokens", "positions", "segment_ids", "loss_weights"):
            np.testing.assert_array_equal(getattr(read[step], name), getattr(mapped[step], name))
    manifest = json.loads((place / "cache/tokens.json").read_text())
    tokenizer = load_tokenizer(place / "tok")
    assert manifest["documents"] == len(KINDS[kind]) and manifest["kind"] == kind
    if kind == "text":
        stored = np.fromfile(place / "cache/tokens.bin", "<u2").tolist()
        assert stored == [i for r in KINDS[kind] for i in tokenizer.encode(r["text"]).ids]


def test_building_again_changes_nothing_and_elsewhere_gives_the_same(place, capsys):
    source = write(place, KINDS["prompt"])
    assert run(place, source) == 0
    assert "written" in capsys.readouterr().out
    before, written = files_of(place / "cache"), (place / "cache/tokens.bin").stat().st_mtime_ns
    assert run(place, source) == 0
    assert "up to date" in " ".join(capsys.readouterr().out.split())
    assert (place / "cache/tokens.bin").stat().st_mtime_ns == written
    assert run(place, source, out="other") == 0
    assert files_of(place / "cache") == files_of(place / "other") == before
    os.utime(source, ns=(1, 1))  # touched, not changed
    loader(place, place / "cache")
    assert run(place, source) == 0
    manifest = json.loads((place / "cache/tokens.json").read_text())
    assert manifest["made_from"]["files"][0]["mtime_ns"] == 1 and manifest["hash"] == json.loads(
        before["tokens.json"])["hash"]


def shards(place):
    write(place, KINDS["text"][:10], "d/a.jsonl")
    write(place, KINDS["text"][10:], "d/b.jsonl")
    return place / "d"


def retokenize(place):
    word_tokenizer([*WORDS.split(), "eleven"]).save(str(place / "tok/tokenizer.json"))


CHANGES = {
    "content": (lambda p: write(p, KINDS["text"][1:], "d/a.jsonl"), "d/a.jsonl changed"),
    "size": (lambda p: (p / "d/a.jsonl").write_bytes((p / "d/a.jsonl").read_bytes().replace(b"one", b"two")),
             "d/a.jsonl changed"),
    "gone": (lambda p: (p / "d/b.jsonl").unlink(), "d/b.jsonl is gone"),
    "new": (lambda p: write(p, KINDS["text"], "d/c.jsonl"), "d/c.jsonl is new"),
    "tokenizer": (retokenize, "the tokenizer is another"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_stale_caches_are_refused_and_rebuilt(place, change):
    source = shards(place)
    assert run(place, source) == 0
    loader(place, place / "cache")
    before = files_of(place / "cache")
    apply, message = CHANGES[change]
    apply(place)
    with pytest.raises(ConfigError, match=f"cache: the token cache is stale: .*{message}.*build it again") as caught:
        loader(place, place / "cache")
    assert "\n" not in str(caught.value)
    assert run(place, source) == 0
    loader(place, place / "cache")
    assert files_of(place / "cache")["tokens.json"] != before["tokens.json"]
    assert sorted(p.name for p in place.iterdir()) == ["cache", "d", "tok"]


def test_another_chat_template_makes_a_chat_cache_stale_and_no_other(place):
    chat, text = write(place, KINDS["chat"]), write(place, KINDS["text"], "t.jsonl")
    assert run(place, chat) == run(place, text, out="texts") == 0
    (place / "tok/chat_template.jinja").write_text(DIFFERENCE + " ")
    with pytest.raises(ConfigError, match="stale: the chat template is another"):
        loader(place, place / "cache")
    loader(place, place / "texts")
    (place / "tok/chat_template.jinja").unlink()  # nothing to compare with
    loader(place, place / "cache")


def test_records_that_moved_are_found_again(place):
    source = write(place, KINDS["text"])
    assert run(place, source) == 0
    (place / "new").mkdir()
    moved = source.rename(place / "new" / source.name)
    assert run(place, moved) == 0  # nothing to tokenise again
    moved.write_text("changed")
    with pytest.raises(ConfigError, match="new/data.jsonl changed"):
        loader(place, place / "cache")


def test_a_cache_stands_without_its_records(place):
    source = write(place, KINDS["text"])
    assert run(place, source) == 0
    expected = loader(place, source)[3].tokens
    source.unlink()
    shutil.move(place / "cache", place / "moved")
    np.testing.assert_array_equal(loader(place, place / "moved")[3].tokens, expected)


@pytest.mark.parametrize("damage, message", [
    (lambda c: (c / "tokens.bin").write_bytes(b"1"), r"tokens.bin has 1 bytes, not \d+; build it again"),
    (lambda c: (c / "ends.bin").unlink(), "ends.bin is missing"),
    (lambda c: (c / "tokens.json").write_text("{}"), "tokens.json lacks column_bytes"),
    (lambda c: (c / "tokens.json").write_text("{"), "tokens.json: not valid JSON"),
    (lambda c: (c / "tokens.json").write_text("[]"), "tokens.json lacks column_bytes")])
def test_damaged_caches_are_refused(place, damage, message):
    assert run(place, write(place, KINDS["text"])) == 0
    damage(place / "cache")
    with pytest.raises(ConfigError, match=f"cache.*{message}"):
        loader(place, place / "cache")


def test_bad_records_stop_the_build_or_are_counted(place, capsys):
    source = write(place, KINDS["text"])
    source.write_text(source.read_text() + "nope\n" + '{"text": ""}\n')
    assert "data.jsonl:31: not valid JSON" in fails(capsys, place, source)
    assert sorted(p.name for p in place.iterdir()) == ["data.jsonl", "tok"]
    assert run(place, source, "max_bad_share=0.1") == 0
    assert "data.jsonl:32: text is empty" in capsys.readouterr().out
    assert json.loads((place / "cache/tokens.json").read_text())["bad"]["count"] == 2
    assert "2 of 32 records" in fails(capsys, place, source)  # up to date, and still more than none
    with pytest.raises(ConfigError, match="2 of 32 records.*data.jsonl:31"):
        loader(place, place / "cache")
    with pytest.warns(UserWarning, match="2 of 32 records"):
        loader(place, place / "cache", max_bad_share=0.1)


def test_bad_calls_are_one_line(place, capsys):
    source = write(place, KINDS["text"])
    assert "nowhere" in fails(capsys, place, place / "nowhere.jsonl")
    assert "max_bad_shar" in fails(capsys, place, source, "max_bad_shar=0.1")
    assert "give --tokenizer" in _error(capsys, "data", "prepare", source, "--out", place / "cache")
    assert "prepare" in _error(capsys, "data", "prepar", source, "--out", place / "cache")
    (place / "mine").mkdir()
    assert "is no token cache" in fails(capsys, place, source, out="mine")
    write(place, [], "empty.jsonl")
    assert "empty.jsonl: holds no records" in fails(capsys, place, place / "empty.jsonl")
    assert run(place, source) == 0
    assert "is a token cache already" in fails(capsys, place, place / "cache", out="again")
    assert sorted(p.name for p in place.iterdir()) == ["cache", "data.jsonl", "empty.jsonl", "mine", "tok"]


def _error(capsys, *argv):
    capsys.readouterr()
    assert main([str(a) for a in argv]) == 2
    return capsys.readouterr().err


class Interrupt(Exception):
    pass


@pytest.mark.parametrize("there", [False, True])
def test_an_interrupted_build_leaves_nothing_half(place, there):
    source, tokenizer = write(place, KINDS["text"] * 100), load_tokenizer(place / "tok")
    if there:
        assert run(place, write(place, KINDS["text"], "old.jsonl")) == 0
    before = files_of(place / "cache") if there else None

    def progress(what, done, total):
        if what == "tokenising" and done > total / 2:
            assert list(place.glob(".cache.*"))  # beside
            raise Interrupt

    with pytest.raises(Interrupt):
        prepare(source, place / "cache", tokenizer, lambda: None, progress=progress)
    assert not list(place.glob(".cache.*"))
    assert (files_of(place / "cache") if there else None) == before
    assert (place / "cache").exists() == there


def test_a_source_that_changes_meanwhile_is_refused(place):
    source = write(place, KINDS["text"])

    def progress(what, done, total):
        if what == "tokenising" and done == total:
            write(place, KINDS["text"][1:])

    with pytest.raises(ConfigError, match="data.jsonl: changed while it was read"):
        prepare(source, place / "cache", load_tokenizer(place / "tok"), lambda: None, progress=progress)
    assert not (place / "cache").exists()


def test_a_killed_build_leaves_nothing_half(place):
    source = write(place, KINDS["text"] * 40)
    code = f"""
import os, signal
from jaxllm.data import load_tokenizer, prepare
def progress(what, done, total):
    if what == "tokenising" and done > total / 2:
        os.kill(os.getpid(), signal.SIGKILL)
prepare({str(source)!r}, {str(place / 'cache')!r}, load_tokenizer({str(place / 'tok')!r}), None, progress=progress)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (place / "cache").exists() and list(place.glob(".cache.*"))
    assert run(place, source) == 0
    assert not list(place.glob(".cache.*"))  # what was left is gone
    loader(place, place / "cache")


def test_a_full_disk_is_one_line(place, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.modules["jaxllm.data.prepare"], "write_documents", full)  # the room's name is the function
    with pytest.raises(ConfigError, match="cache: not built .No space left on device"):
        prepare(write(place, KINDS["text"]), place / "cache", load_tokenizer(place / "tok"), lambda: None)
    assert not (place / "cache").exists() and not list(place.glob(".cache.*"))


def test_every_path_of_a_config_is_prepared(place, capsys):
    a, b = write(place, KINDS["text"], "a.jsonl"), write(place, KINDS["prompt"], "b.jsonl")
    size = load_tokenizer(place / "tok").get_vocab_size()
    model = {"vocab_size": size, "d_model": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8,
             "d_mlp": 24, "max_length": 64, "causal": True, "eos_id": 1}
    mixture = [{"weight": 2, "path": str(a)}, {"weight": 1, "path": str(b)}, {"weight": 1, "task": {"grid": 3}}]
    data = {"length": 48, "response_length": 8, "batch_size": 2, "mixture": mixture}
    config = place / "run.yaml"
    config.write_text(yaml.safe_dump({"model": model, "stages": [{"steps": 1, "data": data}],
                                      "tokenizer": str(place / "tok"), "validation": {**data, "mixture": [
                                          {"weight": 1, "path": str(a)}]}}))
    assert main(["data", "prepare", str(config), "--out", str(place / "caches")]) == 0
    assert sorted(p.name for p in (place / "caches").iterdir()) == ["a", "b"]
    loader(place, place / "caches/b")
    err = _error(capsys, "data", "prepare", config, "--out", place / "more", f"model.vocab_size={size - 1}")
    assert f"model.vocab_size={size - 1}: the tokenizer has {size} tokens" in err and not (place / "more").exists()
    config.write_text(yaml.safe_dump({"model": model, "stages": [{"steps": 1, "data": {"task": {}}}],
                                      "tokenizer": str(place / "tok")}))
    assert "nothing to prepare" in _error(capsys, "data", "prepare", config, "--out", place / "more")


def test_the_hash_of_a_tokenizer_hangs_on_its_content():
    from jaxllm.data.prepare import tokenizer_hash

    first, second = (build_word_tokenizer([WORDS]) for _ in range(2))
    assert tokenizer_hash(first) == tokenizer_hash(second) != tokenizer_hash(build_word_tokenizer([WORDS + " eleven"]))
    second.enable_truncation(5)
    assert tokenizer_hash(first) != tokenizer_hash(second)
