"use strict";
const data = JSON.parse(document.getElementById("traces").textContent);
const pick = ["cell", "attempt"].map(id => document.getElementById(id));
const view = document.getElementById("trace");

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function marked(text, flags) {  // the words that show a flag are marked; nothing of a trace is taken for HTML
  const pre = element("pre"), chars = Array.from(text);  // offsets count characters, not UTF-16 units
  const part = (from, to) => chars.slice(from, to).join("");
  let at = 0;
  for (const flag of [...flags].sort((a, b) => a.start - b.start)) {
    if (flag.start < at) continue;
    pre.append(part(at, flag.start));
    pre.append(element("mark", part(flag.start, flag.end)));
    at = flag.end;
  }
  pre.append(part(at));
  return pre;
}

function show() {
  const trace = data.filter(t => t.cell === pick[0].value)[pick[1].selectedIndex];
  view.replaceChildren();
  if (!trace) return;
  view.append(element("p", `score ${trace.score === null ? "none" : trace.score}, ${trace.status}` +
    (trace.error ? `: ${trace.error}` : "")));
  if (trace.question) {
    const asked = element("div", undefined, "event");
    asked.append(element("small", "task"), element("pre", trace.question));
    view.append(asked);
  }
  trace.events.forEach((event, step) => {
    const box = element("div", undefined, `event ${event.kind}`);
    const flags = trace.flags.filter(f => f.step === step);
    box.append(element("small", `${step} · ${event.kind} · ${event.t} s` + (event.outcome ? ` · ${event.outcome}` : "")));
    flags.forEach(f => box.append(element("span", f.name.replaceAll("_", " "), "flag")));
    box.append(marked(event.shown, flags));
    if (event.result) box.append(element("small", "result"), element("pre", event.result));
    view.append(box);
  });
}

function fill() {
  pick[1].replaceChildren(...data.filter(t => t.cell === pick[0].value).map(t => element("option",
    `${t.task}, repeat ${t.repeat}: ${t.score === null ? t.status : "score " + t.score}` +
    (t.flags.length ? ` (${[...new Set(t.flags.map(f => f.name.replaceAll("_", " ")))].join(", ")})` : ""))));
  show();
}

pick[0].append(...[...new Set(data.map(t => t.cell))].map(cell => element("option", cell)));
pick[0].addEventListener("change", fill);
pick[1].addEventListener("change", show);
fill();
