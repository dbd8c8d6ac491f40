"""The leaderboard: one HTML file that needs nothing else, from a disk as well as from a server."""

from __future__ import annotations

import html
import importlib.resources
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllm.evaluation import pareto
from jaxllm.evaluation.config import NONE
from jaxllm.evaluation.flags import FLAGS, event_text
from jaxllm.evaluation.records import read_results, read_traces
from jaxllm.evaluation.summary import CellSummary, cell_of, summarize, trace_flags
from jaxllm.files import write_text
from jaxllm.studies import Interval

PAGE = "leaderboard.html"
TRACES = 40  # of a cell, at most; failures and flagged ones first
CHARACTERS = 4000  # of a text in a trace
WIDE = 550  # a picture, in pixels
LETTER = 6.4  # width of one in a picture, about
# Where a label may stand: below its point by so much, and whether to the left of it.
PLACES = tuple((down, left) for down in (-5, 13, 4, -18, 26, -31, 39, -44, 52) for left in (False, True))
COLORS = ("#2266aa", "#aa5522", "#118855", "#884499", "#bb3355", "#667700", "#008899", "#555555")
METRICS = {"C_out": "outcomes", "C_traj": "actions", "C_seq": "their order", "C_cost": "cost", "C_time": "time",
           "C_conf": "confidence", "P_rc": "selective", "P_cal": "calibration", "AUROC": "AUROC", "Brier": "Brier",
           "skipped": "steps skipped"}


def write_page(directory: str | Path, *, title: str = "Leaderboard", debiased: bool = False) -> Path:
    """Write `leaderboard.html` of an evaluation into its directory; the file.

    Raises:
      ConfigError: there are no results.
    """
    directory = Path(directory)
    cells = summarize(directory, debiased=debiased)
    assets = importlib.resources.files("jaxllm.evaluation") / "assets"
    css, script = ((assets / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    parts = [f"<h1>{html.escape(title)}</h1>",
             '<p class="note">Intervals are at 95 %, by bootstrap over tasks. Attempts that failed for no fault of '
             "the agent's count nowhere but in their own column. Bold: on the front of accuracy and cost.</p>"]
    plain = [cell for cell in cells if cell.key[4] == NONE]
    for suite in dict.fromkeys(cell.key[0] for cell in plain):
        mine = [cell for cell in plain if cell.key[0] == suite]
        plots = [plot for plot in (_front_plot(mine), _effort_plot(mine)) if plot]
        parts += [f"<h2>{html.escape(suite)}</h2>", _main_table(mine),
                  '<div class="plots">' + "\n".join(plots) + "</div>" if plots else ""]
    parts += ["<h2>Reliability</h2>", _reliability_table(plain), _robustness_table(cells), "<h2>Behaviour</h2>",
              _flag_table(cells), _judge_table(cells), "<h2>Traces</h2>",
              '<p><select id="cell"></select><select id="attempt"></select></p>'
              '<div id="trace"></div>', _data(_shown_traces(directory))]
    body = "\n".join(part for part in parts if part)
    write_text(directory / PAGE, f"<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\">"
               f"<meta name=\"viewport\" content=\"width=device-width\"><title>{html.escape(title)}</title>\n"
               f"<style>\n{css}</style></head>\n<body>\n{body}\n<script>\n{script}</script>\n</body></html>\n")
    return directory / PAGE


def cell_name(cell: Sequence[str]) -> str:
    """Agent, model, effort and perturbation in words."""
    return " · ".join([cell[1], *(part for part in cell[2:] if part != NONE)])


def number(value: float | None) -> str:
    """Short text of a number; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _interval(found: Interval | None) -> str:
    if found is None:
        return "–"
    return f'{number(found.value)} <span class="interval">[{number(found.low)}, {number(found.high)}]</span>'


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[bool] = ()) -> str:
    """Cells are HTML already; the first column is text."""
    head = "".join(f'<th class="text">{c}</th>' if i == 0 else f"<th>{c}</th>" for i, c in enumerate(columns))
    out = []
    for place, row in enumerate(rows):
        cells = "".join(f'<td class="text">{c}</td>' if i == 0 else f"<td>{c}</td>" for i, c in enumerate(row))
        out.append(f"<tr{' class=front' if place < len(marked) and marked[place] else ''}>{cells}</tr>")
    return f'<div class="scroll"><table><tr>{head}</tr>\n' + "\n".join(out) + "</table></div>"


def _points(cells: Sequence[CellSummary]) -> tuple[str, dict[int, tuple[float, float]]]:
    """(what the axis of cost is, (cost, accuracy) by place of the cell): cost if it is known, else seconds.

    Who asks no model costs nothing.
    """
    axis = "cost" if any("cost" in cell.metrics for cell in cells) else "seconds"
    costs = {i: 0.0 for i, cell in enumerate(cells) if axis == "cost" and cell.key[2] == NONE}
    costs |= {i: cell.metrics[axis].value for i, cell in enumerate(cells) if axis in cell.metrics}
    return axis, {i: (costs[i], cell.metrics["accuracy"].value) for i, cell in enumerate(cells)
                  if i in costs and "accuracy" in cell.metrics}


def _main_table(cells: Sequence[CellSummary]) -> str:
    _, points = _points(cells)
    places = list(points)
    on = {places[i] for i in pareto.front(list(points.values()))}
    order = sorted(range(len(cells)), key=lambda i: -cells[i].metrics["accuracy"].value
                   if "accuracy" in cells[i].metrics else 1)
    rows = []
    for i in order:
        cell, accuracy = cells[i], cells[i].metrics.get("accuracy")
        bar = "" if accuracy is None or math.isnan(accuracy.low) else (
            f'<span class="bar"><i style="left:{100 * accuracy.low:.1f}%;'
            f'width:{100 * (accuracy.high - accuracy.low):.1f}%"></i>'
            f'<b style="left:{97 * accuracy.value:.1f}%"></b></span>')
        rows.append([html.escape(cell_name(cell.key)), bar, _interval(accuracy), _interval(cell.metrics.get("cost")),
                     _interval(cell.metrics.get("seconds")), str(cell.attempts), str(cell.faults),
                     html.escape(", ".join(cell.levels)) or "–"])
    return _table(["agent, model, effort", "", "accuracy", "cost", "seconds", "attempts", "faults", "sandbox"], rows,
                  [i in on for i in order])


def _front_plot(cells: Sequence[CellSummary]) -> str:
    axis, points = _points(cells)
    if len(points) < 2:
        return ""
    places, values = list(points), list(points.values())
    most = max(cost for cost, _ in values) or 1.0
    plot = _Plot(most, f"mean {axis} of a run", "accuracy")
    stairs: list[tuple[float, float]] = []
    for i in pareto.front(values):
        stairs += [(values[i][0], stairs[-1][1])] if stairs else []
        stairs.append(values[i])
    plot.line(stairs, "#999")
    plot.line([values[i] for i in pareto.hull(values)], "#999", dashed=True)
    for i, value in zip(places, values, strict=True):
        accuracy = cells[i].metrics["accuracy"]
        plot.point(value, COLORS[i % len(COLORS)], cell_name(cells[i].key), (accuracy.low, accuracy.high))
    return plot.svg("front of cost and accuracy; dashed: reached by mixing agents at random")


def _effort_plot(cells: Sequence[CellSummary]) -> str:
    efforts = list(dict.fromkeys(cell.key[3] for cell in cells if cell.key[3] != NONE))
    if len(efforts) < 2:
        return ""
    plot = _Plot(len(efforts) - 1, "effort", "accuracy", efforts)
    pairs = list(dict.fromkeys(cell.key[1:3] for cell in cells if cell.key[3] != NONE))
    for place, pair in enumerate(pairs):
        line = [(efforts.index(c.key[3]), c) for c in cells if c.key[1:3] == pair and "accuracy" in c.metrics]
        color = COLORS[place % len(COLORS)]
        plot.line([(x, c.metrics["accuracy"].value) for x, c in line], color)
        for x, c in line:
            a = c.metrics["accuracy"]
            plot.point((x, a.value), color, " · ".join(pair) if x == line[-1][0] else "", (a.low, a.high))
    return plot.svg("accuracy against effort")


class _Plot:
    """A small SVG: x from 0 to `most`, y from 0 to 1."""

    def __init__(self, most: float, x: str, y: str, ticks: Sequence[str] = ()) -> None:
        self._most, self._parts, self._labels = most, list[str](), list[tuple[float, float, str]]()
        for step in range(5):
            value = step / 4
            _, at = self._at((0, value))
            self._parts.append(f'<line x1="50" x2="{WIDE - 20}" y1="{at:.1f}" y2="{at:.1f}" stroke="#8884"/>'
                               f'<text x="44" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>')
        for step in range(len(ticks) or 5):
            value = step if ticks else most * step / 4
            at, _ = self._at((value, 0))
            self._parts.append(f'<text x="{at:.1f}" y="276" text-anchor="middle">'
                               f"{html.escape(ticks[step]) if ticks else number(value)}</text>")
        self._parts.append(f'<text x="{WIDE / 2 + 25}" y="294" text-anchor="middle">{html.escape(x)}</text>'
                           '<text x="12" y="135" transform="rotate(-90 12 135)" text-anchor="middle">'
                           f"{html.escape(y)}</text>")

    def _at(self, point: tuple[float, float]) -> tuple[float, float]:
        return 60 + (WIDE - 90) * point[0] / self._most, 255 - 240 * point[1]

    def line(self, points: Sequence[tuple[float, float]], color: str, dashed: bool = False) -> None:
        """A line through points."""
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(self._at, points))
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(f'<polyline points="{joined}" fill="none" stroke="{color}"{dash}/>')

    def point(self, point: tuple[float, float], color: str, label: str, bounds: tuple[float, float]) -> None:
        """A point, its interval and its name."""
        x, y = self._at(point)
        if not math.isnan(bounds[0]):
            low, high = (self._at((point[0], b))[1] for b in bounds)
            self._parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{color}" '
                               'stroke-opacity="0.5"/>')
        self._parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"><title>{html.escape(label)}</title>'
                           "</circle>")
        if label:
            self._labels.append((x, y, label))

    def _named(self) -> str:
        """Labels beside their points, where no other is; one without room stands in its point's title alone."""
        taken: list[tuple[float, float, float, float]] = []
        out = []
        for x, y, label in sorted(self._labels, key=lambda found: found[1]):
            wide = LETTER * len(label)
            for down, left in PLACES:
                start, base = (x - 7 - wide if left else x + 7), y + down
                box = (start, base - 10, start + wide, base + 3)
                if start >= 46 and box[2] <= WIDE - 4 and 10 <= base <= 262 and all(
                        box[0] >= b[2] or b[0] >= box[2] or box[1] >= b[3] or b[1] >= box[3] for b in taken):
                    taken.append(box)
                    out.append(f'<text class="label" x="{x - 7 if left else start:.1f}" y="{base:.1f}"'
                               f'{" text-anchor=end" if left else ""}>{html.escape(label)}</text>')
                    break
        return "".join(out)

    def svg(self, label: str) -> str:
        """The picture."""
        return (f'<figure><div class="scroll"><svg viewBox="0 0 {WIDE} 300" width="{WIDE}" role="img" aria-label='
                f'"{html.escape(label)}">' + "".join(self._parts) + self._named()
                + f'</svg></div><figcaption>{html.escape(label[0].upper() + label[1:])}.</figcaption></figure>')


def _reliability_table(cells: Sequence[CellSummary]) -> str:
    names = [name for name in METRICS if any(name in cell.metrics for cell in cells)]
    rows = [[html.escape(f"{cell.key[0]}: {cell_name(cell.key)}"), *(_interval(cell.metrics.get(n)) for n in names)]
            for cell in cells if any(n in cell.metrics for n in names)]
    if not rows:
        return '<p class="note">Nothing to show: it takes repeats, or a confidence that agents state.</p>'
    return _table(["cell", *(f'<span title="{name}">{METRICS[name]}</span>' for name in names)], rows)


def _robustness_table(cells: Sequence[CellSummary]) -> str:
    """R of every cell that was perturbed."""
    changes = list(dict.fromkeys(cell.key[4] for cell in cells if cell.key[4] != NONE))
    if not changes:
        return ""
    found = {cell.key: cell.metrics for cell in cells}
    rows = [[html.escape(f"{key[0]}: {cell_name(key)}"), _interval(metrics.get("accuracy")),
             *(_interval(found.get((*key[:4], change), {}).get(what)) for change in changes
               for what in ("accuracy", "R"))]
            for key, metrics in found.items() if key[4] == NONE and any((*key[:4], c) in found for c in changes)]
    heads = [html.escape(head) for change in changes for head in (f"accuracy: {change}", f"R: {change}")]
    return ('<p class="note">Robustness: R is the accuracy under a perturbation over that without, at most 1.</p>'
            + _table(["cell", "accuracy", *heads], rows))


def _share(count: int, of: int) -> str:
    return f"{100 * count / of:.0f} %" if of else "–"


def _judge_table(cells: Sequence[CellSummary]) -> str:
    """What the judge found, and how far it and the rules agree."""
    judged = [cell for cell in cells if cell.judged is not None]
    if not judged:
        return ""
    rows = []
    for name in FLAGS:
        both, rules, judge, neither = (sum(cell.agreement[name][i] for cell in judged) for i in range(4))
        rows.append([name.replace("_", " "), str(both), str(rules), str(judge), str(neither)])
    return ('<p class="note">Attempts that a model judged too, by who found the flag.</p>'
            + _table(["flag", "both", "rules alone", "judge alone", "neither"], rows))


def _flag_table(cells: Sequence[CellSummary]) -> str:
    rows = [[html.escape(f"{cell.key[0]}: {cell_name(cell.key)}"),
             *(" / ".join(_share(cell.flags[n][i], cell.solved[i]) for i in (0, 1)) for n in FLAGS)]
            for cell in cells if any(sum(cell.flags[n]) for n in FLAGS)]
    if not rows:
        return '<p class="note">No rule found anything.</p>'
    note = '<p class="note">Share of solved / of other attempts in which a rule found it.</p>'
    return note + _table(["cell", *(n.replace("_", " ") for n in FLAGS)], rows)


def _shown_traces(directory: Path) -> list[dict[str, Any]]:
    """Traces for the viewer: of each cell at most `TRACES`, failures and flagged ones first."""
    results = {record["run"]: record for record in read_results(directory)}
    kept: dict[Any, list[tuple[int, int, dict[str, Any]]]] = {}
    for place, trace in enumerate(read_traces(directory)):
        record, flags = results[trace["run"]], trace_flags(trace)
        rank = 0 if flags else 1 if record["score"] != 1 else 2
        mine = kept.setdefault(cell_of(trace), [])
        if len(mine) >= TRACES and rank >= mine[-1][0]:
            continue
        mine.append((rank, place, _shown(trace, record, flags)))
        mine.sort(key=lambda item: item[:2])
        del mine[TRACES:]
    return [trace for mine in kept.values() for _, _, trace in mine]


def _shown(trace: Mapping[str, Any], record: Mapping[str, Any], flags: Sequence[Any]) -> dict[str, Any]:
    events = [{"kind": e["kind"], "t": e.get("t", 0), "outcome": e.get("outcome"), "shown": event_text(e)[:CHARACTERS],
               "result": str(e.get("result") or "")[:CHARACTERS]} for e in trace["events"]]
    return {"cell": f"{trace['suite']}: {cell_name(cell_of(trace))}", "task": trace["task"], "repeat": trace["repeat"],
            "score": record["score"], "status": record["status"], "error": record["error"],
            "question": trace.get("question", "")[:CHARACTERS], "events": events,
            "flags": [{"name": f.name, "step": f.step, "start": f.start, "end": f.end} for f in flags]}


def _data(traces: Sequence[Mapping[str, Any]]) -> str:
    """JSON within a page; nothing in it can end the element."""
    text = json.dumps(traces).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return f'<script type="application/json" id="traces">{text}</script>'
