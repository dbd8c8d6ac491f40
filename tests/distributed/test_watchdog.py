"""Who hangs, from what is known of all; and the watch itself over a store that one process left."""

import threading
import time

import pytest

from jaxllm.distributed import Watchdog
from jaxllm.distributed import watchdog as module
from jaxllm.distributed.watchdog import Beat, verdict


@pytest.mark.parametrize("beats, index, text", [
    # Silent before slow: it is the silent one that the slow one waits for.
    ({0: Beat(8, 60, 1), 1: Beat(7, 62, 55), 2: Beat(6, 61, 2)}, 1, "last sign of life 55 s ago, at step 7; the others "
                                                                    "are at step 8"),
    ({0: Beat(8, 60, 1), 1: Beat(7, 70, 2), 2: Beat(8, 61, 2)}, 1, "it lives, but stands at step 7 since 70 s"),
    ({0: Beat(8, 60, 1), 1: Beat(8, 70, 2)}, 1, "every process lives and stands at step 8"),
    ({0: Beat(0, 60, 1), 1: None}, 1, "process 1 of 2 hangs: never heard of"),
    ({0: Beat(5, 90, 80), 1: Beat(5, 60, 50)}, 0, "process 0 of 2 hangs: last sign of life 80 s ago"),
])
def test_verdicts(beats, index, text):
    found, said = verdict(beats, silent_after=10)
    assert found == index and text in said


class Store:
    """JAX's key-value store as far as the watchdog uses it."""

    def __init__(self, delay=None):
        self.data, self.delay = {}, delay

    def key_value_set(self, key, value, allow_overwrite):
        if self.delay is not None:
            self.delay.wait()
        self.data[key] = value

    def key_value_dir_get(self, prefix):
        return [(k, v) for k, v in self.data.items() if k.startswith(prefix)]


def watched(monkeypatch, capsys, store, seconds=1.0):
    """Exit code and text of a watchdog that sees no step."""
    monkeypatch.setattr(module, "_client", lambda: store)
    monkeypatch.setattr(module.jax, "process_index", lambda: 1)
    monkeypatch.setattr(module.jax, "process_count", lambda: 3)
    left, code = threading.Event(), []
    with Watchdog(seconds, 100, leave=lambda c: (code.append(c), left.set())) as watchdog:
        watchdog.beat(4)
        assert left.wait(60)
    return code, capsys.readouterr().err


def test_the_process_without_a_sign_of_life_is_named(monkeypatch, capsys):
    store = Store()
    store.data |= {"jaxllm/beat/0": "1 4 0.1", "jaxllm/beat/2": "9 3 0.2"}
    stop = threading.Event()

    def alive():
        number = 1
        while not stop.wait(0.05):
            number += 1
            store.data["jaxllm/beat/0"] = f"{number} 4 0.5"

    threading.Thread(target=alive, daemon=True).start()
    code, text = watched(monkeypatch, capsys, store)
    stop.set()
    assert code == [75]
    assert "process 2 of 3 hangs: last sign of life" in text and "at step 3; the others are at step 4" in text
    assert "Process 1 stands at test_watchdog.py" in text or "Process 1 stands at" in text


def test_a_coordinator_that_does_not_answer_is_named(monkeypatch, capsys):
    never = threading.Event()
    code, text = watched(monkeypatch, capsys, Store(never))
    never.set()
    assert code == [75] and "process 0 of 3 hangs: the coordinator, which it runs, has not answered" in text


def test_steps_and_the_last_step_keep_it_quiet(monkeypatch):
    monkeypatch.setattr(module, "_client", lambda: Store())
    code = []
    with Watchdog(0.3, 5, leave=code.append) as watchdog:
        for step in range(1, 6):
            time.sleep(0.02)
            watchdog.beat(step)
        time.sleep(0.8)  # after the last step nothing is watched: process 0 exports
    assert code == []


def test_single_processes_are_not_watched():
    threads = threading.active_count()
    with Watchdog(0.1, 5):
        assert threading.active_count() == threads
