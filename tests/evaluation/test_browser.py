"""The leaderboard as somebody sees it: opened in a headless Chromium, wide and narrow, without an error."""

import struct
import zlib
from pathlib import Path

import pytest

from jaxllm.evaluation.config import AgentConfig, EvaluateConfig, ModelConfig, PerturbationConfig, SuiteConfig
from jaxllm.evaluation.judging import judge
from jaxllm.evaluation.page import write_page
from jaxllm.evaluation.runner import evaluate
from tests.evaluation.helpers import agent, keep, script
from tests.evaluation.test_page import write

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser(chromium):
    from jaxllm.evaluation.browser import Browser

    made = Browser()
    yield made
    made.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Four agents on four suites, three efforts, perturbed, judged."""
    place = tmp_path_factory.mktemp("page")
    for name in ("clerk", "careless"):
        assert (ROOT / "configs" / "evaluation" / name / "main.py").is_file()
    agents = (AgentConfig("oracle", "oracle"), AgentConfig("null", "null"), agent(place, "asks", model=True),
              *(AgentConfig(n, "hal", str(ROOT / "configs" / "evaluation" / n), model=False)
                for n in ("clerk", "careless")))
    suites = (SuiteConfig("desk", size=6), SuiteConfig("shop", size=2),
              SuiteConfig("probes", generator="arithmetic", size=4, settings={"steps": 4, "length": 0}),
              SuiteConfig("reasoning_gym", generator="spell_backward", size=3))
    thinker = ModelConfig("thinker", "script", script=str(ROOT / "configs" / "evaluation" / "thinker.py") + ":think")
    (place / "prices.json").write_text('{"thinker": {"completion": 1000}}')
    config = EvaluateConfig(suites, agents, (thinker,), efforts=("1", "4", "8"), at_once=2,
                            prices=str(place / "prices.json"), perturbations=(PerturbationConfig("fault"),))
    evaluate(config, place / "out")
    judge(script(place, "judge", "    return '[]'\n"), place / "out")
    return write_page(place / "out", title="Everybody")


def pixels(png):
    """(width, height, share of bytes that are not the most common one) of a PNG of 8 bits without alpha or with it."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    data, at = b"", 8
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at:at + 8])
        data += png[at + 8:at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    raw = zlib.decompress(data)
    most = max(range(256), key=raw.count)
    return width, height, 1 - raw.count(most) / len(raw)


@pytest.mark.parametrize("width, height", [(1280, 900), (390, 844)])
def test_the_leaderboard_in_a_browser(browser, page, tmp_path, width, height):
    tab = browser.tab(width, height)
    try:
        tab.go(page.as_uri())
        assert tab.errors == []
        text = tab.evaluate("document.body.innerText")
        for words in ("Everybody", "desk", "shop", "arithmetic", "spell_backward", "oracle", "careless",
                      "Reliability", "Robustness", "R: fault", "Behaviour", "judge alone", "steps skipped"):
            assert words in text, words
        assert tab.evaluate("document.title") == "Everybody"
        labels = tab.evaluate("[...document.querySelectorAll('svg')].map(s => s.getAttribute('aria-label'))")
        assert labels.count("accuracy against effort") == 4 and sum("front" in label for label in labels) == 4
        # Nothing but tables that scroll by themselves is wider than the window.
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        # No two labels of a picture lie on each other, and none is cut off.
        assert tab.evaluate(OVERLAPS) == []
        whole = tab.screenshot(whole=True)
        keep(f"leaderboard-{width}.png", whole, tmp_path)
        found = pixels(tab.screenshot())
        assert found[:2] == (width, height) and found[2] > 0.02
        # The viewer: another cell, another attempt, another trace.
        cells = tab.evaluate("[...document.querySelectorAll('#cell option')].map(o => o.text)")
        assert any(c.startswith("desk: careless") for c in cells)
        tab.evaluate("{ const s = document.getElementById('cell'); s.value = [...s.options].find(o => "
                     "o.text === 'desk: careless').value; s.dispatchEvent(new Event('change')); 0 }")
        shown = tab.evaluate("document.getElementById('trace').innerText")
        assert "ask_customer" in shown and "score" in shown
        tab.evaluate("{ const s = document.getElementById('attempt'); s.selectedIndex = 1; "
                     "s.dispatchEvent(new Event('change')); 0 }")
        assert tab.evaluate("document.getElementById('trace').innerText") != shown
        tab.evaluate("document.getElementById('trace').scrollIntoView(); 0")
        keep(f"viewer-{width}.png", tab.screenshot(), tmp_path)
        assert tab.errors == []
    finally:
        tab.close()


OVERLAPS = """[...document.querySelectorAll('svg')].flatMap(svg => {
  const boxes = [...svg.querySelectorAll('text.label')].map(t => [t.textContent, t.getBoundingClientRect()]);
  const edge = svg.getBoundingClientRect();
  return boxes.flatMap(([name, a], i) => [
    ...(a.right > edge.right + 1 || a.left < edge.left - 1 || a.top < edge.top - 1 ? [name + ' is cut off'] : []),
    ...boxes.slice(i + 1).filter(([, b]) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1
      && b.top < a.bottom - 1).map(([other]) => name + ' lies on ' + other)]);
})"""


def test_hostile_traces_run_nothing(browser, tmp_path):
    """The page of `test_page`, whose every text is an attack: no dialog, no image, no error; the flag is marked."""
    tab = browser.tab()
    try:
        tab.go(write_page(write(tmp_path)).as_uri())
        assert tab.errors == [] and tab.evaluate("document.querySelectorAll('img').length") == 0
        assert "<img src=x" in tab.evaluate("document.getElementById('trace').innerText")
        assert tab.evaluate("[...document.querySelectorAll('mark')].map(m => m.textContent)") == ["I give up"]
    finally:
        tab.close()


def test_errors_of_a_page_are_seen(browser, tmp_path):
    """The control."""
    (tmp_path / "bad.html").write_text("<script>console.error('one'); nothing.there()</script><img src='none.png'>")
    tab = browser.tab()
    try:
        tab.go((tmp_path / "bad.html").as_uri())
        assert len(tab.errors) == 3 and all(any(word in error for error in tab.errors)
                                            for word in ("one", "ReferenceError", "none.png"))
    finally:
        tab.close()
