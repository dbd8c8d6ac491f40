"""Bad input: one line with the right name in it, exit code 2, no traceback. Good input: files and exit code 0."""

import json
from pathlib import Path

import pytest

from jaxllm.cli import main
from jaxllm.cli.memory import with_huge_pages
from tests.diffusion import oracle
from tests.diffusion.helpers import write_model

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from jaxllm.data import build_word_tokenizer

    directory = tmp_path_factory.mktemp("cli") / "model"
    write_model(directory, *oracle.random_model("llada", 0, vocab=64))
    build_word_tokenizer(["one two three"]).save(str(directory / "tokenizer.json"))
    return directory


def copy_of(model, tmp_path, **config):
    directory = tmp_path / "broken"
    directory.mkdir()
    for file in model.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    data = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**data, **config}))
    return directory


def fails(capsys, *argv):
    code = main([str(a) for a in argv])
    err = capsys.readouterr().err
    assert code == 2
    assert err.count("\n") == 1 and "Traceback" not in err
    return err


@pytest.mark.parametrize("setting, name", [
    ("gen_length=0", "gen_length"), ("gamma=nan", "gamma"), ("window_length=0", "window_length"),
    ("track_num=0", "track_num"), ("threshold=0", "threshold"), ("threshold=1.5", "threshold"),
    ("threshold=nan", "threshold"), ("widow_length=4", "window_length"), ("block_length=7", "block_length"),
    ("method=elastik", "elastic"), ("eos_id=99", "eos_id"), ("steps=8", "steps"), ("gamma", "key=value")])
def test_bad_decoder_settings(capsys, model, setting, name):
    method = ["method=dual"] if setting.startswith("block_length") else []
    err = fails(capsys, "decode", "--model", model, "--prompt", "one two", "gen_length=32", *method, setting)
    assert name in err


def test_bad_prompts(capsys, model, tmp_path):
    run = ("decode", "--model", model, "gen_length=8")
    assert "prompt 0: is empty" in fails(capsys, *run, "--prompt", "")
    assert "context of 256" in fails(capsys, *run, "--prompt", "one " * 250)
    assert "--prompt" in fails(capsys, *run)
    assert "nowhere.jsonl" in fails(capsys, *run, "--prompts", tmp_path / "nowhere.jsonl")
    (tmp_path / "p.jsonl").write_text('{"prompt": "one"}\nnot json\n')
    assert "p.jsonl:2" in fails(capsys, *run, "--prompts", tmp_path / "p.jsonl")
    (tmp_path / "p.jsonl").write_text('{"prompt": 5}\n')
    assert "p.jsonl:1" in fails(capsys, *run, "--prompts", tmp_path / "p.jsonl")
    (tmp_path / "p.jsonl").write_text("\n")
    assert "no prompts" in fails(capsys, *run, "--prompts", tmp_path / "p.jsonl")
    (tmp_path / "p.jsonl").write_bytes(b"\xff\xfe")
    assert "p.jsonl" in fails(capsys, *run, "--prompts", tmp_path / "p.jsonl")


def test_a_report_that_cannot_be_written_is_named(capsys, model, tmp_path):
    (tmp_path / "file").write_text("not a directory")
    assert "file" in fails(capsys, "decode", "--model", model, "--prompt", "one", "gen_length=8", "--no-live",
                           "--report", tmp_path / "file")


def test_bad_models(capsys, model, tmp_path):
    def run(directory):
        return fails(capsys, "decode", "--model", directory, "--prompt", "one", "gen_length=8")

    assert "no such model directory" in run(tmp_path / "nowhere")
    broken = copy_of(model, tmp_path, mask_token_id=64)
    assert "mask_id=64" in run(broken) and "63" in run(broken)
    (broken / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    assert "mamba" in run(broken)
    (broken / "config.json").write_bytes((model / "config.json").read_bytes())
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[:len(weights) // 2])
    assert "model.safetensors" in run(broken) and "truncated" in run(broken)
    (broken / "model.safetensors").write_bytes(weights)
    (broken / "tokenizer.json").unlink()
    assert "tokenizer.json" in run(broken) and "missing" in run(broken)


def test_chat_templates(capsys, model, tmp_path):
    directory = copy_of(model, tmp_path)
    run = ("decode", "--model", directory, "gen_length=8", "--no-live", "--chat", "--prompt")
    assert "no chat template" in fails(capsys, *run, "two")
    # A template beside the tokenizer is enough, as Dream's files have it.
    (directory / "chat_template.jinja").write_text(
        "{% for m in messages %}one {{ m.content }} {% endfor %}{% if add_generation_prompt %}three{% endif %}")
    assert "prompt 0: is empty" in fails(capsys, *run, "")
    assert main([str(a) for a in (*run, "two", "--report", tmp_path / "chat")]) == 0
    assert main([str(a) for a in (*run[:-2], "--prompt", "one two three", "--report", tmp_path / "plain")]) == 0
    chat, plain = (json.loads((tmp_path / name / "decode.jsonl").read_text()) for name in ("chat", "plain"))
    assert chat["token_ids"] == plain["token_ids"]
    (directory / "chat_template.jinja").write_text("{{ raise_exception('no system turn') }}")
    assert "no system turn" in fails(capsys, *run, "two")


def test_unknown_command_config_key_and_bench(capsys, tmp_path):
    assert "invalid choice" in fails(capsys, "decod")
    config = ROOT / "configs/diffusion/game_of_life.yaml"
    assert "learning_rate" in fails(capsys, "train", config, "--run-dir", tmp_path / "r", "optimizer.learnin_rate=1")
    assert not (tmp_path / "r").exists()
    assert "decode" in fails(capsys, "bench", "decod")
    assert "no such" in fails(capsys, "convert", tmp_path / "x.gguf", tmp_path / "y").lower()


def test_decode_writes_a_report(capsys, model, tmp_path):
    code = main(["decode", "--model", str(model), "--prompt", "one two", "--prompt", "three", "gen_length=16",
                 "window_length=4", "--report", str(tmp_path / "report")])
    assert code == 0
    lines = [json.loads(x) for x in (tmp_path / "report/decode.jsonl").read_text().splitlines()]
    steps = [json.loads(x) for x in (tmp_path / "report/steps.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == ["one two", "three"]
    for i, line in enumerate(lines):
        mine = [s for s in steps if s["prompt"] == i]
        assert len(mine) == line["forward_passes"]
        assert sum(sum(s["rows"]) for s in mine) == line["rows_computed"]
    assert (tmp_path / "report/decode.png").read_bytes()[:4] == b"\x89PNG"


def test_convert_round_trip(model, tmp_path):
    import numpy as np
    from safetensors.numpy import load_file

    assert main(["convert", str(model), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_allclose(after[name].astype(np.float32), tensor, rtol=8e-3)


def test_huge_pages_are_asked_for_once_and_only_where_the_kernel_leaves_it_to_us():
    ask = "always [madvise] never"
    env = with_huge_pages({"A": "1", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=3"}, ask)
    assert env == {"A": "1", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=3:glibc.malloc.hugetlb=1"}
    assert with_huge_pages({}, ask) == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    assert with_huge_pages(env, ask) is None
    assert with_huge_pages({}, "[always] madvise never") is None
