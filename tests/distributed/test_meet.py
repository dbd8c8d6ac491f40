"""The roll call: all hear the same verdict, and everything that goes wrong has the address in it."""

import json
import socket
import threading

import pytest

from jaxllm.config import ConfigError
from jaxllm.distributed import Place
from jaxllm.distributed.meet import meet


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def call(port, members, timeout_s=30.0):
    """What each (index, count) of `members` gets from `meet`: None, or the error's text."""
    out = [None] * len(members)

    def run(i, index, count):
        try:
            meet(Place(index, count, f"127.0.0.1:{port}", "test"), timeout_s)
        except ConfigError as err:
            out[i] = str(err)

    threads = [threading.Thread(target=run, args=(i, *member)) for i, member in enumerate(members)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return out


def test_all_meet_and_leave_the_port_free():
    port = free_port()
    assert call(port, [(i, 4) for i in (2, 0, 3, 1)]) == [None] * 4
    assert call(port, [(0, 2), (1, 2)]) == [None] * 2  # a restarted run takes the same port


def test_missing_processes_are_named_to_all():
    port = free_port()
    texts = call(port, [(0, 4), (2, 4)], timeout_s=1.5)
    assert texts[0] == f"127.0.0.1:{port}: 2 of 4 processes came within 1.5 s; missing: 1, 3"
    assert texts[1] == texts[0]


def test_different_counts_are_named_to_all():
    port = free_port()
    texts = call(port, [(0, 3), (2, 4), (1, 3)], timeout_s=2.0)
    assert "process 2 counts 4 processes, process 0 counts 3" in texts[0] and f"127.0.0.1:{port}" in texts[0]
    assert texts[1] == texts[0]
    # Process 1 hears it if it was there in time; else it finds nobody.
    assert texts[2] == texts[0] or "process 1 of 3 could not reach process 0 there within 2 s" in texts[2]


def test_two_that_claim_one_place():
    texts = call(free_port(), [(0, 3), (1, 3), (1, 3)])
    assert all("two processes call themselves process 1 of 3" in text for text in texts)


def test_an_id_outside_the_run():
    texts = call(free_port(), [(0, 2), (2, 2)])
    assert "a process calls itself 2; ids are 0..1" in texts[0]


def test_nobody_there_gives_the_address():
    port = free_port()
    text, = call(port, [(1, 2)], timeout_s=1.0)
    assert f"127.0.0.1:{port}: process 1 of 2 could not reach process 0 there within 1 s (Connection refused)" in text
    assert "2 processes were expected" in text
    text, = call_host("no-such-host.invalid", port)
    assert "no-such-host.invalid" in text and "could not reach process 0" in text


def call_host(host, port):
    with pytest.raises(ConfigError) as err:
        meet(Place(1, 2, f"{host}:{port}", "test"), 0.6)
    return [str(err.value)]


def test_a_taken_port_is_said():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        text, = call(port, [(0, 2)])
        assert text == f"127.0.0.1:{port}: process 0 cannot listen there (the port is taken by another program); " \
                       "choose another port"


def test_strangers_and_those_who_come_again_do_not_disturb():
    port = free_port()
    address = ("127.0.0.1", port)

    def connect(message):
        for _ in range(200):
            try:
                guest = socket.create_connection(address, timeout=5)
                break
            except OSError:
                threading.Event().wait(0.05)
        guest.sendall(message)
        return guest

    result = []
    host = threading.Thread(target=lambda: result.append(call(port, [(0, 3)])))
    host.start()
    connect(b"GET / HTTP/1.0\r\n\r\n").close()
    connect(json.dumps(["not", "a", "hello"]).encode() + b"\n").close()
    connect(json.dumps({"process": 1, "count": 3}).encode() + b"\n").close()  # died while it waited
    assert call(port, [(1, 3), (2, 3)]) == [None, None]
    host.join(60)
    assert result == [[None]]
