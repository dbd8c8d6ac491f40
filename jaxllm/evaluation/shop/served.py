"""The shop as pages: a server on this machine, a headless browser that looks at it, tools that click and fill in."""

from __future__ import annotations

import html
import http.server
import math
import threading
import urllib.parse
from collections.abc import Mapping
from typing import Any

from jaxllm.evaluation.browser import Tab, shared_browser
from jaxllm.evaluation.shop.state import SHOWN, Shop, money
from jaxllm.evaluation.world import ToolError, checked_arguments, tool_about

NUMBER = {"type": "integer", "description": "of the control, as it stands in brackets on the page"}
BROWSER_TOOLS = (
    tool_about("read_page", "Shows the page: its text, and in brackets the numbers of what can be clicked or filled "
               "in."),
    tool_about("click", "Clicks a link or button; shows the page after it.", number=NUMBER),
    tool_about("fill", "Writes a text into a field.", number=NUMBER, text="to write"),
    tool_about("choose", "Chooses from a list.", number=NUMBER, choice="as it stands in the list"),
)
# Numbers what can be used, and reads the page with the numbers where they belong.
READ = """(() => {
  const used = [...document.querySelectorAll("a[href], button, input:not([type=hidden]), select")];
  used.forEach((e, i) => e.setAttribute("data-number", i + 1));
  const walk = node => {
    if (node.nodeType === 3) return node.textContent.replace(/\\s+/g, " ");
    if (node.nodeType !== 1 || ["SCRIPT", "STYLE"].includes(node.tagName)) return "";
    const n = node.getAttribute("data-number"), tag = node.tagName;
    if (tag === "SELECT") return ` [${n}] list ${node.name}, ${node.value || "nothing"} chosen of: ` +
      [...node.options].filter(o => o.value).map(o => o.text).join(", ") + "\\n";
    if (tag === "INPUT") return ` [${n}] field ${node.name}: "${node.value}"\\n`;
    const inner = [...node.childNodes].map(walk).join("");
    if (n) return ` [${n}] ${tag === "A" ? "link" : "button"} ${inner.trim()}\\n`;
    return /^(P|DIV|LI|H1|H2|FORM|UL|LABEL)$/.test(tag) ? inner + "\\n" : inner;
  };
  return walk(document.body).split("\\n").map(l => l.trim()).filter(l => l).join("\\n");
})()"""
USE = """((number, kind, value) => {
  const e = document.querySelector(`[data-number="${number}"]`);
  if (!e) return "there is no control " + number;
  const is = {A: "click", BUTTON: "click", INPUT: "fill", SELECT: "choose"}[e.tagName];
  if (is !== kind) return `control ${number} is not there to ${kind}`;
  if (kind === "click") { e.click(); return ""; }
  if (kind === "fill") { e.value = value; return ""; }
  const option = [...e.options].find(o => o.value && (o.text === value || o.value === value));
  if (!option) return "the list holds " + [...e.options].filter(o => o.value).map(o => o.text).join(", ");
  e.value = option.value;
  return "";
})"""


class ShopInBrowser:
    """A shop whose tools are those of somebody at a browser."""

    def __init__(self, world: Mapping[str, Any]) -> None:
        """Serve it and open its first page; raises `ConfigError` where there is no browser."""
        self._shop = Shop(world)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self._shop))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True, name="shop").start()
        try:
            self._tab: Tab = shared_browser().tab()
            self._tab.go(f"http://127.0.0.1:{self._server.server_port}/")
        except BaseException:
            self._server.shutdown()
            self._server.server_close()
            raise

    @property
    def state(self) -> dict[str, Any]:
        """Of the shop."""
        return self._shop.state

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Run a tool.

        Raises:
          ToolError: it cannot do that.
        """
        checked_arguments(BROWSER_TOOLS, name, arguments)
        if name != "read_page":
            value = arguments.get("text", arguments.get("choice", ""))
            self._tab.evaluate(READ)  # numbers stand on the page
            if why := self._tab.act(USE, arguments["number"], name, value):
                raise ToolError(why)
        return self._tab.evaluate(READ)

    def screenshot(self) -> bytes:
        """What the page looks like, as PNG."""
        return self._tab.screenshot()

    def close(self) -> None:
        """Close tab and server."""
        self._tab.close()
        self._server.shutdown()
        self._server.server_close()


CSS = ("body{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:1.5rem auto;padding:0 1rem;color:#222}"
       "nav{display:flex;gap:1rem;border-bottom:1px solid #ccc;padding-bottom:.7rem}input,select,button{font:inherit;"
       "padding:.2rem .5rem}li{margin:.35rem 0}label{display:block;margin:.5rem 0}.error{color:#a00}")


def _page(title: str, body: str) -> str:
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
            f'<link rel="icon" href="data:,"><style>{CSS}</style></head><body><nav><form action="/search" method="get">'
            f'<input name="query" aria-label="query"> <button>Search</button></form><a href="/basket">Basket</a></nav>'
            f"<h1>{html.escape(title)}</h1>{body}</body></html>")


def _results(shop: Shop, query: str, page: int) -> str:
    found = shop.find(query)
    pages = max(1, math.ceil(len(found) / SHOWN))
    page = min(max(page, 1), pages)
    shown = "".join(f'<li><a href="/item/{n}">{html.escape(shop.items[n]["title"])}</a> from '
                    f'{money(shop.items[n]["price"])}</li>' for n in found[(page - 1) * SHOWN:page * SHOWN])
    asked = urllib.parse.quote(query)
    steps = "".join(f'<a href="/search?query={asked}&amp;page={to}">{name} page</a> '
                    for name, to in (("Previous", page - 1), ("Next", page + 1)) if 1 <= to <= pages)
    return _page("Search", f"<p>{len(found)} found for “{html.escape(query)}”, page {page} of {pages}</p>"
                 f"<ul>{shown}</ul><p>{steps}</p>")


def _item(shop: Shop, number: str, error: str = "") -> str:
    item = shop.item(number)
    lists = "".join(
        f'<label>{axis} <select name="{axis}"><option value="">choose</option>'
        + "".join(f'<option value="{c}">{c}{f" (+{money(more)})" if more else ""}</option>'
                  for c, more in choices.items()) + "</select></label>" for axis, choices in item["options"].items())
    wrong = f'<p class="error">{html.escape(error)}</p>' if error else ""
    return _page(item["title"], f"<p>from {money(item['price'])}</p><ul>" + "".join(
        f"<li>{html.escape(f)}</li>" for f in item["features"]) + f'</ul>{wrong}<form method="post" action="/add">'
        f'<input type="hidden" name="item" value="{number}">{lists}<button>Add to basket</button></form>')


def _basket(shop: Shop, error: str = "") -> str:
    if shop.state["order"] is not None:
        total = money(sum(line["price"] for line in shop.state["order"]))
        return _page("Thank you", f"<p>Your order over {total} was placed.</p>")
    lines = "".join(
        f"<li>{html.escape(shop.items[line['item']]['title'])}"
        + "".join(f", {axis} {choice}" for axis, choice in line["options"].items()) + f", {money(line['price'])}"
        f'<form method="post" action="/remove"><input type="hidden" name="item" value="{line["item"]}">'
        "<button>Remove</button></form></li>" for line in shop.state["basket"])
    total = money(sum(line["price"] for line in shop.state["basket"]))
    body = f'<ul>{lines}</ul><p>Together {total}</p><form method="post" action="/checkout"><button>Order now</button>' \
           "</form>" if lines else "<p>The basket is empty.</p>"
    return _page("Basket", (f'<p class="error">{html.escape(error)}</p>' if error else "") + body)


def _handler(shop: Shop) -> type[http.server.BaseHTTPRequestHandler]:
    class Pages(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urllib.parse.urlsplit(self.path)
            asked = urllib.parse.parse_qs(url.query)
            try:
                if url.path == "/search":
                    page = asked.get("page", ["1"])[0]
                    self._say(_results(shop, asked.get("query", [""])[0], int(page) if page.isdigit() else 1))
                elif url.path.startswith("/item/"):
                    self._say(_item(shop, url.path.removeprefix("/item/"), asked.get("error", [""])[0]))
                elif url.path == "/basket":
                    self._say(_basket(shop, asked.get("error", [""])[0]))
                else:
                    self._say(_page("Shop", "<p>Search for what you need.</p>"), 200 if url.path == "/" else 404)
            except ToolError as error:
                self._say(_page("Not found", f"<p>{html.escape(str(error))}</p>"), 404)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
            given = {key: values[0] for key, values in urllib.parse.parse_qs(body).items()}
            number, to = given.pop("item", ""), "/basket"
            try:
                if self.path == "/add":
                    to = f"/item/{number}"
                    shop.add(number, given)
                    to = "/basket"
                elif self.path == "/remove":
                    shop.remove(number)
                elif self.path == "/checkout":
                    shop.order()
            except ToolError as error:
                to += "?error=" + urllib.parse.quote(str(error))
            self.send_response(303)
            self.send_header("location", to)
            self.send_header("content-length", "0")
            self.end_headers()

        def _say(self, text: str, status: int = 200) -> None:
            data = text.encode()
            self.send_response(status)
            self.send_header("content-type", "text/html; charset=utf-8")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    return Pages
