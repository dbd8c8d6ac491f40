"""The server against the engine it serves: same tokens, same text whole and in pieces; what is refused or fails."""

import concurrent.futures
import contextlib
import http.client
import json
import socket
import sys
import threading
import time

import jax
import numpy as np
import pytest
import uvicorn
from starlette.testclient import TestClient
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as kinds

from jaxllm import models
from jaxllm.checkpoint import save_pretrained
from jaxllm.cli import main
from jaxllm.data import ChatTemplate
from jaxllm.generation import Engine, EngineConfig, Request, Sampling, stop_ids
from jaxllm.generation import engine as engine_module
from jaxllm.models import ModelConfig
from jaxllm.serving import Worker, make_app
from jaxllm.serving.text import TextStream, answer_text, pieces

MODEL = ModelConfig(vocab_size=257, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, d_mlp=48,
                    max_length=256, causal=True, qkv_bias=True, eos_id=256, family="qwen2")
CONFIG = EngineConfig(slots=3, length=200, chunk=4, prompt_bucket=16, stop_ids=(256,))
CHAT = ChatTemplate("{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
                    "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
                    "{% if add_generation_prompt %}assistant:{% endif %}")
GREEDY = {"model": "tiny", "temperature": 0, "max_tokens": 24}


def bytes_tokenizer():
    """A token for each byte, so that a random model writes characters in part, and an end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(kinds.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer


TOKENIZER = bytes_tokenizer()


@pytest.fixture(scope="module")
def params():
    return jax.jit(models.init, static_argnums=0)(MODEL, jax.random.key(3))


@pytest.fixture(scope="module")
def engine(params):
    return Engine(params, MODEL, CONFIG, tokenizer=TOKENIZER)


def make_worker(params, **settings):
    return Worker(lambda: Engine(params, MODEL, CONFIG, tokenizer=TOKENIZER), **settings)


@pytest.fixture(scope="module")
def client(params):
    with TestClient(make_app(make_worker(params, max_waiting=20), TOKENIZER, "tiny", CHAT)) as client:
        yield client


def alone(engine, prompt, count, temperature=0.0, **more):
    ids = TOKENIZER.encode(prompt).ids if isinstance(prompt, str) else prompt
    (found,) = engine.run([Request(0, ids, count, Sampling(temperature), **more)])
    return found


def text_of(tokens):
    return TOKENIZER.decode([t for t in np.asarray(tokens).tolist() if t != 256])


def complete(client, path="completions", **body):
    done = client.post(f"/v1/{path}", json={**GREEDY, **body})
    assert done.status_code == 200, done.text
    return done.json()


def events(client, path="completions", **body):
    done = client.post(f"/v1/{path}", json={**GREEDY, "stream": True, **body})
    assert done.status_code == 200 and done.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in done.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def refused(client, status, path="completions", **body):
    done = client.post(f"/v1/{path}", json={"model": "tiny", "prompt": "a", **body})
    error = done.json()["error"]
    assert done.status_code == status and set(error) == {"message", "type", "param", "code"}
    return error


def test_completions_are_the_engine_s(client, engine):
    """Texts and token ids, one and several, in the order asked."""
    texts = ["hello", "wörld", "x"]
    for prompt in (texts, [TOKENIZER.encode(t).ids for t in texts]):
        found = complete(client, prompt=prompt)
        assert [c["index"] for c in found["choices"]] == [0, 1, 2]
        for text, choice in zip(texts, found["choices"], strict=True):
            expected = alone(engine, text, 24)
            assert choice["text"] == text_of(expected.tokens) and choice["finish_reason"] == expected.reason
        asked = sum(len(t.encode()) for t in texts)
        drawn = sum(len(alone(engine, t, 24).tokens) for t in texts)
        assert found["usage"] == {"prompt_tokens": asked, "completion_tokens": drawn, "total_tokens": asked + drawn}
    for prompt in ("hello", TOKENIZER.encode("hello").ids):
        assert complete(client, prompt=prompt)["choices"][0]["text"] == text_of(alone(engine, "hello", 24).tokens)
    assert len(text_of(alone(engine, "hello", 16).tokens)) == len(
        client.post("/v1/completions", json={"prompt": "hello", "temperature": 0}).json()["choices"][0]["text"])


def test_drawn_answers_follow_the_seed_and_n(client, engine):
    found = complete(client, prompt=["ab", "cd"], n=2, temperature=0.9, seed=11, top_k=50, top_p=0.9, min_p=0.01)
    for i, choice in enumerate(found["choices"]):
        ids = TOKENIZER.encode(["ab", "cd"][i // 2]).ids
        (expected,) = engine.run([Request(0, ids, 24, Sampling(0.9, 50, 0.9, 0.01), seed=11 + i)])
        assert choice["index"] == i and choice["text"] == text_of(expected.tokens)
    assert len({c["text"] for c in found["choices"]}) == 4
    assert found["usage"]["prompt_tokens"] == 4
    unseeded = [complete(client, prompt="ab", temperature=1)["choices"][0]["text"] for _ in range(2)]
    assert unseeded[0] != unseeded[1]


@pytest.mark.parametrize("count", [1, 3])
def test_pieces_of_a_stream_join_to_the_whole(client, count):
    body = {"prompt": "hello", "n": count, "temperature": 1.0, "seed": 5, "max_tokens": 60}
    whole = complete(client, **body)
    found = events(client, **body, stream_options={"include_usage": True})
    assert found[-1]["choices"] == [] and found[-1]["usage"] == whole["usage"]
    parts = [e["choices"][0] for e in found[:-1]]
    assert len(parts) > 5 * count
    for choice in whole["choices"]:
        mine = [p for p in parts if p["index"] == choice["index"]]
        assert "".join(p["text"] for p in mine) == choice["text"]
        assert [p["finish_reason"] for p in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]


def test_chat(client, engine):
    messages = [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]
    expected = text_of(alone(engine, "user:hi\nassistant:", 24).tokens)
    found = complete(client, "chat/completions", messages=messages)
    assert found["object"] == "chat.completion"
    assert found["choices"][0]["message"] == {"role": "assistant", "content": expected}
    parts = events(client, "chat/completions", messages=messages)
    assert {p["object"] for p in parts} == {"chat.completion.chunk"}
    deltas = [p["choices"][0]["delta"] for p in parts]
    assert deltas[0] == {"role": "assistant", "content": ""} and "".join(d["content"] for d in deltas) == expected
    # Without a length an answer may fill the slot.
    found = complete(client, "chat/completions", messages=messages, max_tokens=None)["usage"]
    assert found["completion_tokens"] == len(alone(engine, "user:hi\nassistant:", 182).tokens)
    error = refused(client, 400, "chat/completions", messages=[{"role": "system", "content": "x"}])
    assert "no system turn" in error["message"] and error["param"] == "messages"


def test_logprobs(client, engine):
    expected = alone(engine, "hello", 24)
    text = text_of(expected.tokens)
    found = complete(client, prompt="hello", logprobs=1)["choices"][0]["logprobs"]
    np.testing.assert_allclose(found["token_logprobs"], expected.logprobs[:len(found["tokens"])], atol=1e-5)
    assert "".join(found["tokens"]) == text and len(found["tokens"]) == len(expected.tokens)
    assert [text[i:][:len(t)] for i, t in zip(found["text_offset"], found["tokens"], strict=True)] == found["tokens"]
    assert found["top_logprobs"][3] == {found["tokens"][3]: found["token_logprobs"][3]}
    messages = [{"role": "user", "content": "hi"}]
    whole = complete(client, "chat/completions", messages=messages, logprobs=True)["choices"][0]["logprobs"]["content"]
    last = events(client, "chat/completions", messages=messages, logprobs=True)[-1]["choices"][0]
    streamed = last["logprobs"]["content"]
    assert [row["token"] for row in streamed] == [row["token"] for row in whole]
    np.testing.assert_allclose([r["logprob"] for r in streamed], [r["logprob"] for r in whole], atol=1e-5)
    assert b"".join(bytes(row["bytes"]) for row in whole).decode() == last["delta"]["content"]
    assert "temperature=0" in refused(client, 400, logprobs=1)["message"]
    assert refused(client, 400, "chat/completions", messages=messages, logprobs=True, top_logprobs=5)["param"] == \
        "top_logprobs"


def test_stop_texts_and_stop_tokens_are_not_in_the_text(client, params, engine):
    whole = text_of(alone(engine, "hello", 40).tokens)
    stop = whole[9:12]
    body = {"prompt": "hello", "max_tokens": 40, "stop": ["never there", stop]}
    found = complete(client, **body, logprobs=0)["choices"][0]
    assert found["text"] == whole[:whole.index(stop)] and found["finish_reason"] == "stop"
    assert "".join(found["logprobs"]["tokens"]) == found["text"]
    assert "".join(e["choices"][0]["text"] for e in events(client, **body)) == found["text"]
    ends = alone(engine, "hello", 40).tokens.tolist()[6]
    config = EngineConfig(slots=1, length=64, chunk=4, stop_ids=(ends,))
    worker = Worker(lambda: Engine(params, MODEL, config, tokenizer=TOKENIZER))
    with TestClient(make_app(worker, TOKENIZER, "tiny")) as other:
        tokens = alone(engine, "hello", 40).tokens.tolist()
        found = complete(other, prompt="hello", max_tokens=40)
        assert found["choices"][0]["text"] == TOKENIZER.decode(tokens[:tokens.index(ends)])
        assert found["choices"][0]["finish_reason"] == "stop"
        assert found["usage"]["completion_tokens"] == tokens.index(ends) + 1
        assert "template" in refused(other, 400, "chat/completions", messages=[{"role": "user"}])["message"]


def test_text_streams_hold_back_what_is_not_certain():
    text = "aé€😀b\ufffdc stop it"
    tokens = TOKENIZER.encode(text).ids
    stream = TextStream(TOKENIZER, ["stop"])
    parts = [stream.push([t]) for t in tokens[:-4]]  # up to the o of stop
    assert "".join(parts) == "aé€😀b\ufffdc " and all(p in text for p in parts)
    assert stream.finish(tokens[:-3]) == ""
    again = TextStream(TOKENIZER, ["stop"])
    again.push(tokens[:-4])
    assert again.push(TOKENIZER.encode("x").ids) == "stox"
    assert answer_text(TOKENIZER, tokens, ["it", "stop"]) == "aé€😀b\ufffdc "
    found = pieces(TOKENIZER, tokens, text)
    assert "".join(found) == text and len(found) == len(tokens) and found[1:3] == ["", "é"]
    broken = TextStream(TOKENIZER)
    half = TOKENIZER.encode("é").ids[:1]
    assert broken.push(half) == "" and broken.finish(half) == "\ufffd"


@pytest.mark.parametrize(("field", "value", "words"), [
    ("prompt", 5, "list of token ids"), ("prompt", [1, "a"], "list of token ids"), ("prompt", None, "list of strings"),
    ("prompt", "", "at least one token"), ("prompt", [], "at least one"), ("prompt", [[1], []], "at least one token"),
    ("prompt", [257], "0..256"), ("prompt", [-1], "0..256"), ("prompt", [True], "token ids"),
    ("prompt", "\ud800", "surrogate"), ("max_tokens", 0, "at least 1"), ("max_tokens", "9", "integer"),
    ("max_tokens", 200, "200 tokens"), ("temperature", -1, "0 (greedy)"), ("temperature", "hot", "number"),
    ("top_p", 0, "(0, 1]"), ("top_k", 1.5, "integer"), ("min_p", 1, "[0, 1)"), ("n", 0, "1..128"), ("n", 24, "at most"),
    ("stop", "", "1 to 1,000"), ("stop", ["a"] * 5, "4"), ("stop", 3, "list"), ("seed", 1.5, "integer"),
    ("stream", "yes", "true or false"), ("logprobs", True, "integer"), ("echo", True, "not supported"),
    ("presence_penalty", 0.5, "not supported"), ("model", 3, "string"), ("stream_options", [], "include_usage"),
])
def test_wrong_fields_are_named_with_what_is_right(client, field, value, words):
    error = client.post("/v1/completions", content=json.dumps({"prompt": "a", field: value}))
    assert error.status_code == 400, error.text
    error = error.json()["error"]
    assert error["param"] == field and words in error["message"] and error["type"] == "invalid_request_error"


def test_what_else_is_refused(client):
    for raw, words in ((b"{", "JSON"), (b"[1]", "object"), (b"\xff", "JSON"), (b"[" * 100_000, "JSON"), (b"", "JSON")):
        done = client.post("/v1/completions", content=raw)
        assert done.status_code == 400 and words in done.json()["error"]["message"]
    error = refused(client, 400, prompt="x" * 200)
    assert error["code"] == "context_length_exceeded" and error["param"] == "prompt"
    error = refused(client, 404, model="gpt")
    assert error["code"] == "model_not_found" and "tiny" in error["message"]
    assert refused(client, 404, "nothing")["type"] == "invalid_request_error"
    assert client.get("/v1/completions").status_code == 405
    for messages in ([], "hi", [{"content": "x"}], [{"role": "user", "content": [{"type": "image_url"}]}]):
        assert refused(client, 400, "chat/completions", messages=messages)["param"] == "messages"
    done = client.post("/v1/completions", content=b" " * (33 << 20))
    assert done.status_code == 413
    # Unknown fields and those that ask for nothing are no error.
    complete(client, prompt="a", max_tokens=1, user="me", best_of=1, presence_penalty=0.0, logit_bias=None, top_k=-1,
             min_p=0, temperature=1e-40, seed=-5)
    complete(client, prompt="a", max_tokens=1, top_k=10**12, temperature=1, seed=10**30)


def test_models_and_health(client):
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "tiny" and model["object"] == "model"
    assert client.get("/health").json() == {"status": "ok", "running": 0, "waiting": 0, "slots": 3}


def test_many_at_once(client, engine):
    prompts = [f"prompt {i}" for i in range(12)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda p: complete(client, prompt=p, max_tokens=8 + len(p)), prompts))
    for prompt, answer in zip(prompts, found, strict=True):
        assert answer["choices"][0]["text"] == text_of(alone(engine, prompt, 8 + len(prompt)).tokens)


def test_a_failing_engine_ends_its_requests_and_the_next_ones_are_served(client, monkeypatch):
    before = complete(client, prompt="hello")["choices"]
    advance, works = engine_module.advance, [0]  # calls that work until one does not

    def broken(*args, **kwargs):
        works[0] -= 1
        if works[0] == -1:
            raise RuntimeError("out of\nmemory")
        return advance(*args, **kwargs)

    monkeypatch.setattr(engine_module, "advance", broken)
    for works[0], stream in ((0, False), (0, True), (1, False)):
        done = client.post("/v1/completions", json={**GREEDY, "prompt": "hello", "stream": stream})
        assert done.status_code == 500 and "out of memory" in done.json()["error"]["message"]
        assert done.json()["error"]["type"] == "server_error"
    works[0] = 1  # after the first piece there is no status left to give
    done = client.post("/v1/completions", json={**GREEDY, "prompt": "hello", "stream": True})
    assert done.status_code == 200 and "out of memory" in done.text and "[DONE]" not in done.text
    assert complete(client, prompt="hello")["choices"] == before
    assert client.get("/health").json()["running"] == 0


@pytest.fixture
def slow_server(params, monkeypatch):
    """A real server with one place to wait, whose engine takes its time; and what was cancelled in it."""
    step, cancel, cancelled = Engine.step, Engine.cancel, []
    monkeypatch.setattr(Engine, "step", lambda self: time.sleep(0.03) or step(self))
    monkeypatch.setattr(Engine, "cancel", lambda self, key: cancelled.append(cancel(self, key)))
    app = make_app(make_worker(params, max_waiting=1), TOKENIZER, "tiny", CHAT)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()[1], cancelled
        server.should_exit = True
        thread.join()


def ask(port, **body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("POST", "/v1/completions", json.dumps({**GREEDY, "prompt": "a", "max_tokens": 190, **body}))
    return connection


def wait_for(port, running, waiting=0):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/health")
        found = json.loads(connection.getresponse().read())
        connection.close()
        if (found["running"], found["waiting"]) == (running, waiting):
            return
        time.sleep(0.01)
    raise AssertionError(found)


def test_clients_that_leave_free_their_slots_and_too_many_are_refused(slow_server):
    port, cancelled = slow_server
    stream = ask(port, stream=True)
    stream.getresponse().read(20)
    whole = ask(port, n=2)
    wait_for(port, 3)
    waits = ask(port, stream=True)
    wait_for(port, 3, 1)
    refusal = ask(port).getresponse()
    assert refusal.status == 429 and "try again" in json.loads(refusal.read())["error"]["message"]
    waits.close()
    wait_for(port, 3)
    stream.close()
    wait_for(port, 2)
    whole.close()
    wait_for(port, 0)
    reasons = [c and c.reason for c in cancelled]
    assert reasons == [None, "cancelled", "cancelled", "cancelled"]  # the first still waited
    answer = json.loads(ask(port, max_tokens=4).getresponse().read())
    assert answer["usage"]["completion_tokens"] == 4


def test_the_command_says_what_is_wrong(capsys, params, tmp_path, monkeypatch):
    def fails(*argv):
        assert main(["serve", *map(str, argv)]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    directory = tmp_path / "tiny"
    save_pretrained(params, MODEL, directory, tokenizer=TOKENIZER)
    (directory / "generation_config.json").write_text('{"eos_token_id": [256, 7]}')
    assert stop_ids(directory, MODEL, TOKENIZER) == (7, 256)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "in use" in fails("--model", directory, "--port", taken.getsockname()[1])
    assert "no such model directory" in fails("--model", tmp_path / "nowhere")
    assert "length=999" in fails("--model", directory, "length=999")
    assert "slots=0" in fails("--model", directory, "slots=0")
    assert "0..65535" in fails("--model", directory, "--port", 70000)
    with monkeypatch.context() as missing:
        missing.setitem(sys.modules, "uvicorn", None)
        assert "jaxllm[serve]" in fails("--model", directory)
    # With everything right: what is printed, and an application that answers.
    served = {}

    def run(self, sockets):
        with TestClient(self.config.app) as client:
            served.update(client.post("/v1/completions", json={"model": "tiny", "prompt": "a"}).json())

    monkeypatch.setattr(uvicorn.Server, "run", run)
    assert main(["serve", "--model", str(directory), "--port", "0", "slots=2"]) == 0
    out = capsys.readouterr().out
    assert "tiny at http://127.0.0.1:" in out and "curl http" in out and served["usage"]["prompt_tokens"] == 1
