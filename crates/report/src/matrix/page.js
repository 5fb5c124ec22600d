"use strict";
// Text goes into the page as text only: names of hosts may be anything.
const read = id => JSON.parse(document.getElementById(id).textContent);
const M = read("data"), W = read("words");
const $ = id => document.getElementById(id);
const RANK = ["holds_by_default", "holds_with_selectors", "holds_with_duties", "unknown", "no"];
const worst = list => list.reduce((a, b) => RANK.indexOf(b) > RANK.indexOf(a) ? b : a, RANK[0]);
const causes = new Map(M.causes.map(c => [c.id, c])), codes = new Map(M.codes.map(c => [c.code, c]));
const state = { guest: W.guest, trip: W.trip, find: "", pair: null };
const OPPOSITE = new Map(M.pairs.map((p, i) => [p.from + ">" + p.to, i]));
const cells = [...document.querySelectorAll(".grid button")];
const HEADINGS = {
  no: "What stands in the way", holds_with_duties: "What the VMM must do itself",
  holds_with_selectors: "What the VMM must select", unknown: "What nobody has observed yet",
  holds_by_default: "What needs nothing",
};
const EVIDENCE = { declared: "an ioctl said it", predicted: "predicted from tables", observed: "seen from inside a guest" };
const AXES = { cpu: "the CPU made it, not the kernel", boot: "boot options made it, not the kernel", shape: "the VM's shape made it" };
const QUESTIONS = {
  running_up: "there", running_back: "and back", new_guest: "started there", new_back: "and moved here",
};

function el(tag, attrs, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attrs || {})) {
    if (k.startsWith("on")) e.addEventListener(k.slice(2), v);
    else if (v !== null && v !== false) e.setAttribute(k, v === true ? "" : v);
  }
  e.append(...children.flat(9).filter(c => c !== null && c !== undefined && c !== ""));
  return e;
}
const answer = (outcome, otherwise) =>
  W.answers.find(a => a.outcome === outcome && (outcome !== "unknown" || a.otherwise === otherwise))
  || { letters: "?", words: "unknown", class: "u" };
const sure = outcome => outcome === "unknown"
  ? { letters: "?", words: "unknown", class: "u" } : answer(outcome, outcome);
const mark = a => el("i", { class: a.class, title: a.words }, a.letters);
const trip = () => W.trips.find(t => t.name === state.trip);
const verdicts = (pair, guest = state.guest, t = trip()) =>
  (pair.guests.find(g => g.guest === guest) || { verdicts: [] }).verdicts.filter(v => t.asks.includes(v.journey));

// Which findings a search speaks of: a cause's name means that cause, other words are looked for everywhere.
const texts = M.findings.map(f => [f.cause, (causes.get(f.cause) || {}).title, f.code, f.subject, f.title, f.at]
  .filter(Boolean).join(" ").toLowerCase());
function wanted() {
  const q = state.find.trim().toLowerCase();
  if (!q) return null;
  const exact = M.causes.find(c => c.id.toLowerCase() === q);
  if (exact) return M.findings.map(f => f.cause === exact.id);
  const none = q.startsWith("cause unknown: ") ? q.slice(15) : null;
  if (none) return M.findings.map(f => !f.cause && f.code === none);
  const words = q.split(/\s+/);
  return texts.map(t => words.every(w => t.includes(w)));
}

function cellAnswer(pair, chosen) {
  const vs = verdicts(pair);
  if (!chosen) return answer(worst(vs.map(v => v.outcome)), worst(vs.map(v => v.otherwise)));
  const hit = vs.flatMap(v => v.findings).filter(i => chosen[i]).map(i => M.findings[i].outcome);
  if (!hit.length) return null;
  return sure(worst(hit));
}

function draw() {
  const chosen = wanted(), t = trip(), guest = W.guests.find(g => g.name === state.guest);
  $("lead").replaceChildren(el("b", {}, state.guest + ", " + t.title + ":"), " " + t.means + " ",
    el("span", {}, guest.name + ": " + guest.means + "."));
  for (const b of cells) {
    const pair = M.pairs[b.dataset.pair], a = cellAnswer(pair, chosen);
    b.className = a ? a.class : "off";
    b.textContent = a ? a.letters : "·";
    b.setAttribute("aria-label", M.hosts[pair.from].short + " to " + M.hosts[pair.to].short + ": "
      + (a ? a.words : "nothing of what is looked for"));
    b.setAttribute("aria-pressed", String(state.pair === +b.dataset.pair));
  }
  for (const section of document.querySelectorAll(".lane")) {
    const counts = new Map();
    for (const b of section.querySelectorAll(".grid button")) counts.set(b.className, (counts.get(b.className) || 0) + 1);
    const kinds = [...W.answers, { class: "u", letters: "?", words: "unknown" }, { class: "off", letters: "·", words: "nothing of what is looked for" }];
    section.querySelector(".bar").replaceChildren(...kinds.filter(k => counts.has(k.class)).map(k =>
      el("span", { class: k.class, style: "flex-grow:" + counts.get(k.class), title: k.words }, k.letters + " " + counts.get(k.class))));
  }
  document.querySelectorAll("#controls input[type=radio]").forEach(r => { r.checked = state[r.name] === r.value; });
  if ($("find").value !== state.find) $("find").value = state.find;
  $("find").setAttribute("aria-invalid", String(chosen !== null && !chosen.some(Boolean)));
  panel(chosen);
  remember();
}

// What cells rest on: the panel while no cell is open.
function ranking() {
  return M.lanes.map(lane => {
    const found = new Map();
    for (const pair of M.pairs.filter(p => lane.hosts.includes(p.from))) {
      const here = new Set();
      for (const i of verdicts(pair).flatMap(v => v.findings)) {
        const f = M.findings[i];
        if (f.outcome === "holds_by_default") continue;
        const key = f.outcome + " " + (f.cause || "cause unknown: " + f.code);
        if (!found.has(key)) found.set(key, { f, cells: 0 });
        if (!here.has(key)) { here.add(key); found.get(key).cells++; }
      }
    }
    const order = ["no", "holds_with_duties", "holds_with_selectors", "unknown"];
    const all = [...found.values()].sort((a, b) => order.indexOf(a.f.outcome) - order.indexOf(b.f.outcome) || b.cells - a.cells
      || (a.f.cause || "").localeCompare(b.f.cause || ""));
    const row = ({ f, cells }) => {
      const name = f.cause || "cause unknown: " + f.code;
      const title = f.cause ? (causes.get(f.cause) || {}).title : "cause unknown: " + (codes.get(f.code) || { title: f.code }).title;
      return el("li", {}, el("button", { type: "button", title: "show where", "aria-pressed": String(state.find === name), onclick: () => find(state.find === name ? "" : name) },
        el("b", {}, String(cells)), mark(sure(f.outcome)), el("span", {}, f.cause ? [el("span", { class: "id" }, f.cause), " "] : "", title)));
    };
    const known = all.filter(r => r.f.outcome !== "unknown"), unknown = all.filter(r => r.f.outcome === "unknown");
    return [
      el("h3", {}, lane.name),
      el("ol", { class: "rank" }, known.slice(0, 10).map(row)),
      known.length > 10 && el("details", { class: "more" }, el("summary", {}, "and " + (known.length - 10) + " more"), el("ol", { class: "rank" }, known.slice(10).map(row))),
      unknown.length > 0 && el("details", { class: "more" }, el("summary", {}, unknown.length + " that nobody has observed yet"), el("ol", { class: "rank" }, unknown.map(row))),
    ].filter(Boolean);
  });
}

function remedy(r) {
  switch (r.kind) {
    case "selector": return r.steps.every(s => s.startsWith("KVM_SET_CPUID2"))
      ? ["select", "KVM_SET_CPUID2 with the contract's table"] : ["select", r.steps.join("; ")];
    case "duty": return ["duty", r.work];
    case "refuse": return ["nothing selects the old value", r.because];
    case "observe": return ["settled by observing from inside a guest", r.name];
    default: return ["nothing to do", "the old behaviour stays until somebody asks"];
  }
}

function card(group, dim) {
  const first = group.findings[0], cause = causes.get(first.cause), code = codes.get(first.code);
  const remedies = new Map(group.findings.map(f => { const [k, t] = remedy(f.remedy); return [k + t, [k, t]]; }));
  const tags = [
    group.journeys.size < trip().asks.length && [...group.journeys].map(j => QUESTIONS[j]).join(", "),
    code && code.title, EVIDENCE[group.evidence], first.shapes.length && "VM shape " + first.shapes.join(", "), AXES[first.axis],
  ].filter(Boolean);
  const line = f => el("li", {}, el("code", {}, f.subject), f.title && f.title !== f.subject ? " " + f.title : "",
    el("div", { class: "values" }, f.before + " → " + f.after, f.at ? "  (" + f.at + ")" : ""));
  const more = group.findings.slice(4);
  const told = [["What a guest observes", cause && cause.guest_observes], ["Who could notice", cause && cause.who],
    ["The way back", cause && cause.rollback], ["Kernels (hints; nothing is decided by them)", cause && cause.kernels],
    ["Sources", cause && cause.sources.join("; ")]].filter(([, t]) => t);
  const name = first.cause || "cause unknown: " + first.code;
  return el("article", { class: dim ? "card dim" : "card" },
    el("header", {}, mark(sure(first.outcome)),
      el("span", {}, first.cause ? [el("span", { class: "id" }, first.cause), " "] : "", cause ? cause.title : "Cause unknown: " + (code ? code.title : first.code)),
      el("button", { type: "button", class: "plain", onclick: () => find(state.find === name ? "" : name) }, state.find === name ? "show all" : "where else?")),
    el("div", { class: "tags" }, tags.map(t => el("em", { class: "badge" }, t))),
    [...remedies.values()].map(([k, t]) => el("p", { class: "remedy" }, el("b", {}, k + ": "), t)),
    el("ul", { class: "list" }, group.findings.slice(0, 4).map(line)),
    more.length ? el("details", {}, el("summary", {}, "and " + more.length + " more"), el("ul", { class: "list" }, more.map(line))) : "",
    cause || code ? el("details", {}, el("summary", {}, "What is known about it"),
      el("p", {}, cause ? cause.summary : code.text),
      told.length ? el("dl", {}, told.map(([k, t]) => [el("dt", {}, k), el("dd", {}, t)])) : "") : "");
}

function groups(pair) {
  const found = new Map();
  for (const v of verdicts(pair)) for (const i of v.findings) {
    const f = M.findings[i];
    const key = [f.outcome, f.cause || f.code + f.remedy.kind, f.axis, f.shapes.join()].join("|");
    if (!found.has(key)) found.set(key, { findings: [], indices: [], journeys: new Set(), evidence: v.evidence });
    const g = found.get(key);
    g.journeys.add(v.journey);
    if (f.evidence === "predicted") g.evidence = "predicted"; else if (g.findings.length === 0) g.evidence = f.evidence;
    if (!g.findings.some(o => o.subject === f.subject && o.before === f.before && o.after === f.after)) g.findings.push(f);
    g.indices.push(i);
  }
  return [...found.values()];
}

function panel(chosen) {
  const p = $("panel");
  if (state.pair === null) {
    p.classList.remove("open");
    p.replaceChildren(el("h2", {}, el("span", {}, "What the cells rest on"), state.find && el("button", { type: "button", class: "plain", onclick: () => find("") }, "show all")),
      el("p", { class: "who" }, "In how many cells, most severe first. Choose one to see where; choose a cell to see what it needs."),
      ...ranking().flat());
    return;
  }
  const pair = M.pairs[state.pair], from = M.hosts[pair.from], to = M.hosts[pair.to], back = OPPOSITE.get(pair.to + ">" + pair.from);
  const head = el("h2", {}, el("span", {}, from.short + " → " + to.short),
    back !== undefined && el("button", { type: "button", class: "plain", onclick: () => open(back) }, "other way"),
    el("button", { type: "button", class: "plain", onclick: close, "aria-label": "Close (Escape)" }, "close"));
  const who = h => el("p", { class: "who" }, el("b", {}, h.name), " " + h.stands_for);
  const four = el("table", { class: "four" }, el("thead", {}, el("tr", {}, el("td", {}), Object.values(QUESTIONS).map(q => el("th", { scope: "col" }, q)))),
    el("tbody", {}, W.guests.map(g => el("tr", {}, el("th", { scope: "row" }, g.name), Object.keys(QUESTIONS).map(j => {
      const v = pair.guests.find(x => x.guest === g.name).verdicts.find(x => x.journey === j), a = answer(v.outcome, v.otherwise);
      const asked = g.name === state.guest && trip().asks.includes(j);
      return el("td", {}, el("button", { type: "button", class: a.class + (asked ? " asked" : ""), title: a.words, "aria-label": g.name + ", " + QUESTIONS[j] + ": " + a.words,
        onclick: () => set({ guest: g.name, trip: W.trips.find(t => t.asks.length === 1 && t.asks[0] === j).name }) }, a.letters));
    })))));
  const a = cellAnswer(pair, null), all = groups(pair), body = [];
  for (const outcome of ["no", "holds_with_duties", "holds_with_selectors", "unknown", "holds_by_default"]) {
    const is = g => !chosen || g.indices.some(i => chosen[i]);
    const here = all.filter(g => g.findings[0].outcome === outcome).sort((a, b) => is(b) - is(a));
    if (!here.length) continue;
    const cards = here.map(g => card(g, !is(g)));
    const title = [mark(sure(outcome)), HEADINGS[outcome] + " (" + here.length + ")"];
    const folded = outcome === "unknown" || outcome === "holds_by_default";
    const hit = chosen && here.some(is);
    body.push(folded ? el("details", { class: "more", open: !!hit }, el("summary", {}, HEADINGS[outcome] + " (" + here.length + ")"), cards)
      : el("h3", {}, title), ...(folded ? [] : cards));
  }
  p.classList.add("open");
  p.replaceChildren(head, who(from), who(to), four,
    el("p", {}, el("b", {}, state.guest + ", " + trip().title + ": "), a.words + "."),
    el("p", { class: "who" }, "Looked at in the VM shapes " + pair.shapes.join(", ") + "."),
    pair.axes.length ? el("p", { class: "who" }, "The hosts differ in more than the kernel; findings say so.") : "",
    ...pair.conflicts.map(c => el("p", {}, "No common contract over ", el("code", {}, c.facet), ": " + c.values.map(([h, v]) => v + " on " + h).join(", ") + ".")),
    ...(body.length ? body : [el("p", {}, "Nothing was found: nothing has to be done.")]));
}

function set(change) { Object.assign(state, change); draw(); }
function find(text) { set({ find: text }); }
function open(pair) { set({ pair }); $("panel").scrollTop = 0; focusCell(cells.find(b => +b.dataset.pair === pair), false); }
function close() {
  const pair = state.pair;
  set({ pair: null });
  focusCell(cells.find(b => +b.dataset.pair === pair), true);
}

// One cell of each grid is reached by Tab, the others by the arrow keys.
function focusCell(b, focus) {
  if (!b) return;
  b.closest("table").querySelectorAll("button").forEach(o => { o.tabIndex = -1; });
  b.tabIndex = 0;
  if (focus) b.focus();
}
function heat(b, on) {
  const td = b.closest("td"), row = td.parentNode;
  row.firstElementChild.classList.toggle("hot", on);
  b.closest("table").tHead.rows[0].cells[td.cellIndex].classList.toggle("hot", on);
}
for (const b of cells) {
  b.addEventListener("click", () => state.pair === +b.dataset.pair ? close() : open(+b.dataset.pair));
  for (const [e, on] of [["mouseenter", true], ["mouseleave", false], ["focus", true], ["blur", false]]) b.addEventListener(e, () => heat(b, on));
  b.addEventListener("keydown", e => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[e.key];
    if (!step) return;
    e.preventDefault();
    const rows = b.closest("tbody").rows;
    let r = b.closest("tr").sectionRowIndex, c = b.closest("td").cellIndex;
    for (;;) {
      r += step[0]; c += step[1];
      if (!rows[r] || c < 1 || !rows[r].cells[c]) return;
      const next = rows[r].cells[c].querySelector("button");
      if (next) { focusCell(next, true); return; }
    }
  });
}
document.querySelectorAll(".grid").forEach(g => focusCell(g.querySelector("button"), false));
document.addEventListener("keydown", e => { if (e.key === "Escape" && state.pair !== null) close(); });
$("controls").addEventListener("submit", e => e.preventDefault());
$("controls").addEventListener("change", e => { if (e.target.type === "radio") set({ [e.target.name]: e.target.value }); });
$("find").addEventListener("input", e => set({ find: e.target.value }));
addEventListener("beforeprint", () => document.querySelectorAll("details.hosts").forEach(d => { d.open = true; }));

// The address keeps what is shown, so that it can be passed on.
function remember() {
  const q = new URLSearchParams({ guest: state.guest, journey: state.trip });
  if (state.find) q.set("find", state.find);
  if (state.pair !== null) {
    q.set("from", M.hosts[M.pairs[state.pair].from].name);
    q.set("to", M.hosts[M.pairs[state.pair].to].name);
  }
  history.replaceState(null, "", "#" + q);
}
function recall() {
  const q = new URLSearchParams(location.hash.slice(1));
  if (W.guests.some(g => g.name === q.get("guest"))) state.guest = q.get("guest");
  if (W.trips.some(t => t.name === q.get("journey"))) state.trip = q.get("journey");
  state.find = q.get("find") || "";
  const at = M.pairs.findIndex(p => M.hosts[p.from].name === q.get("from") && M.hosts[p.to].name === q.get("to"));
  state.pair = at < 0 ? null : at;
  draw();
}
addEventListener("hashchange", recall);
recall();
