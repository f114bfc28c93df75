// Asks for two documents again and again, and shows what is new in them. Text is only ever set as text.
"use strict";

const SECONDS = 5;
const SERIES = ["s0", "s1", "s2", "s3", "s4", "s5"];
const MOST_DRIFT = 6, MOST_FIGURES = 8;
const { clean, colour, draw, faint, line, releaseMarks } = charts;
const at = (id) => document.getElementById(id);
const whole = (n) => Math.round(n).toLocaleString("en-US");
const percent = (share) => `${(100 * share).toLocaleString("en-US", { maximumFractionDigits: share < 0.1 ? 2 : 1 })}%`;
const short = (n) => (n === null || n === undefined ? "–" : Number(n.toPrecision(3)).toLocaleString("en-US", { maximumFractionDigits: 6 }));
const moment = (ms) => new Date(ms).toISOString().replace("T", " ").slice(0, 16).replace(/ 00:00$/, "");
const clock = () => new Date().toISOString().slice(11, 19);
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
const last = (list) => list[list.length - 1];

let state = null, live = null, chosen = null;
const etags = {};

async function ask(name) {
  const answer = await fetch(`v1/${name}`, { headers: etags[name] ? { "If-None-Match": etags[name] } : {}, cache: "no-store" });
  if (answer.status === 304) return null;
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  const found = await answer.json();
  etags[name] = answer.headers.get("ETag");
  return found;
}

async function look() {
  try {
    state = (await ask("state")) || state;
    if (state.has_metrics) live = (await ask("live")) || live;
    show();
    tell(state.reading ? "reading the tables…" : `up to date at ${clock()} UTC`, false);
  } catch (error) {
    tell(`no answer at ${clock()} UTC: what is shown is older`, true);
    if (!(error instanceof TypeError)) console.error(error);
  }
  setTimeout(look, 1000 * (state === null || state.reading ? 1 : SECONDS));
}

function tell(text, bad) {
  at("status").textContent = text;
  at("status").classList.toggle("alarm", bad);
}

function element(tag, text, name) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = clean(text);
  if (name) made.className = name;
  return made;
}

function table(place, heads, rows) {
  const made = element("table"), head = made.createTHead().insertRow(), body = made.createTBody();
  heads.forEach(([text, name]) => { const th = element("th", text, name); th.scope = "col"; head.append(th); });
  for (const cells of rows) {
    const row = body.insertRow();
    cells.forEach(([text, name], n) => row.append(element("td", text, [heads[n][1], name].filter(Boolean).join(" "))));
  }
  place.replaceChildren(made);
  place.tabIndex = 0;  // what is too wide for a phone is moved by keys, too
}

function facts(place, pairs) {
  place.replaceChildren(...pairs.map(([name, value, kind]) => {
    const made = element("div", undefined, kind);
    made.append(element("dt", name), element("dd", value));
    return made;
  }));
}

function show() {
  const run = choose();
  at("project").textContent = clean(state.project);
  document.title = `${clean(state.project)}: dashboard`;
  const faults = [...state.faults, ...(run ? run.faults : []), ...[live, live && live.endpoint].filter((of) => of && of.fault).map((of) => of.fault)];
  if (run && run.more_faults) faults.push(`and ${run.more_faults} more`);
  at("faults").replaceChildren(...faults.map((text) => element("p", text, "card fault")));
  if (live) showLive(live);
  if (live && live.endpoint) showServed(live.endpoint);
  if (run) showRun(run);
  showReleases(state.releases);
}

function choose() {
  const folders = state.runs.map((run) => run.folder);
  const select = at("sink");
  at("choice").hidden = folders.length < 2;
  if (JSON.stringify([...select.options].map((o) => o.value)) !== JSON.stringify(folders)) {
    select.replaceChildren(...folders.map((folder) => Object.assign(element("option", folder), { value: folder })));
  }
  if (!folders.includes(chosen)) chosen = folders[0];
  select.value = chosen;
  const run = state.runs.find((each) => each.folder === chosen);
  at("choices").hidden = !run;
  return run && newest(run, Number(at("span").value));
}

// What a run's newest days say; 0 for all.
function newest(run, days) {
  const end = Math.max(run.starts.length ? last(run.starts) + run.step : 0, run.windows.length ? last(run.windows).end : 0);
  const from = days ? end - days * 86400000 : 0;
  const since = (times, before = 0) => { const n = times.findIndex((t) => t > from - before); return n < 0 ? times.length : n; };
  const cut = (of, n, names) => ({ ...of, ...Object.fromEntries(names.map((name) => [name, of[name].slice(n)])) });
  const start = since(run.starts, 1);  // steps by their starts, windows by their ends
  const series = (list, names) => list.map((of) => cut(of, since(of.ends), ["ends", ...names])).filter((of) => of.ends.length);
  return {
    ...run, starts: run.starts.slice(start), decisions: run.decisions.map((d) => cut(d, start, ["rows"])),
    windows: run.windows.filter((w) => w.end > from),
    drift: series(run.drift, ["values", "thresholds"]),
    figures: series(run.figures, ["labelled", "rows", "realised", "expected", "low", "high"]),
  };
}

function showRun(run) {
  const rows = sum(run.decisions.map((d) => sum(d.rows)));
  const alarms = run.windows.filter((w) => w.status === "alarm").length;
  const judged = run.windows.filter((w) => w.status !== "unjudged").length;
  const release = last(state.releases);
  facts(at("facts"), [
    ...(run.starts.length ? [["score rows", whole(rows)]] : []),
    ...Object.entries(run.events).map(([name, n]) => [`events ${name}`, whole(n)]),
    ...(run.windows.length ? [["windows with alarms", `${alarms} of ${judged}`, alarms ? "alarm" : "ok"],
      [run.followed ? "open incidents, since it is followed" : "open incidents", String(run.open.length), run.open.length ? "alarm" : "ok"]] : []),
    ...(release ? [["newest release", `${release.seq}, ${release.champion.slice(0, 8)}`]] : []),
  ]);
  showTrouble(run, alarms, judged);
  showObjectives(at("promises"), at("objectives"), run.objectives);
  showEvents(run, rows);
  showPerformance(run.figures);
  showScore(run.score);
  showDrift(run);
}

function showTrouble(run, alarms, judged) {
  at("trouble").hidden = !run.windows.length;
  if (!run.windows.length) return;
  const text = `${judged} windows judged, ${alarms} with alarms.`;
  at("windows").textContent = text;
  at("strip").setAttribute("aria-label", text);
  at("strip").replaceChildren(...run.windows.map((w) => element("i", undefined, w.status)));
  at("strip-ends").replaceChildren(element("span", moment(run.windows[0].end)), element("span", moment(last(run.windows).end)));
  if (run.open.length) {
    table(at("open"), [["open since", "t"], ["feature"], ["kind"], ["alarms", "n"], ["last", "text"]],
      run.open.map((i) => [[day(i.opened)], [i.feature], [i.kind], [String(i.alarms)], [i.text, "alarm"]]));
  } else {
    const over = run.alerts.find((a) => a.event === "clear");
    at("open").replaceChildren(over ? `No incident is open. The last, ${clean(over.feature)} ${over.kind}, was over in the window up to ${day(over.window_end)}.` : "No incident is open.");
  }
  at("told").hidden = !run.alerts.length;
  table(at("alerts"), [["window up to", "t"], ["what"], ["feature"], ["kind"], ["text", "text"]],
    run.alerts.map((a) => [[day(a.window_end)], [a.event], [a.feature], [a.kind], [a.text]]));
}

const day = (iso) => moment(Date.parse(iso));

function showObjectives(section, place, objectives) {
  section.hidden = !objectives.length;
  const said = { true: ["met", "ok"], false: ["MISSED", "alarm"], null: ["nothing to tell by"] };
  table(place, [["objective"], [""], ["budget used", "n"], ["found", "n"], ["target", "n"], ["of what", "text"]],
    objectives.map((o) => [[o.name], said[o.met], [o.used === null ? "" : `${whole(100 * o.used)}%`], [o.found], [o.target], [o.text]]));
}

function showEvents(run, rows) {
  at("events").hidden = !run.starts.length;
  if (!run.starts.length) return;
  const step = { 3600000: "hour", 86400000: "day", 604800000: "week" }[run.step] || `${run.step / 604800000} weeks`;
  const end = last(run.starts) + run.step;
  const totals = run.starts.map((_, n) => sum(run.decisions.map((d) => d.rows[n])));
  const by = run.decisions.map((d) => [d.name, sum(d.rows)]);
  at("of-rows").textContent = clean(`${whole(rows)} rows from ${moment(run.starts[0])} to ${moment(end)}: ` +
    by.map(([name, n]) => `${name} ${whole(n)} (${percent(n / rows)})`).join(", ") + ".");
  const middle = run.starts.map((start) => start + run.step / 2);
  const range = { range: [run.starts[0], end] };
  draw(at("rows"), [run.starts, run.decisions, state.releases], () => ({
    title: `Score rows by ${step} and decision`, note: `${whole(last(totals))} in the newest ${step}`,
    traces: run.decisions.map((d, n) => ({
      x: middle, y: d.rows, name: charts.label(d.name), type: "bar", marker: { color: colour(SERIES[n % SERIES.length]) },
    })),
    layout: { barmode: "stack", bargap: run.starts.length > 60 ? 0 : 0.12, showlegend: true, xaxis: range, ...releaseMarks(state.releases, run.starts[0], end) },
  }));
  const most = by.reduce((a, b) => (b[1] > a[1] ? b : a))[0];
  const others = run.decisions.map((d, n) => [d, n]).filter(([d]) => d.name !== most);
  at("shares").hidden = !others.length;
  if (!others.length) return;
  draw(at("shares"), [run.starts, run.decisions, state.releases], () => ({
    title: `Share of rows by ${step}, all decisions but ${most}`,
    note: others.map(([d]) => `${d.name} ${last(totals) ? percent(last(d.rows) / last(totals)) : "–"}`).join(", ") + ` in the newest ${step}`,
    traces: others.map(([d, n]) => line(middle, d.rows.map((r, k) => (totals[k] ? (100 * r) / totals[k] : null)), d.name, SERIES[n % SERIES.length])),
    layout: { showlegend: true, xaxis: range, yaxis: { ticksuffix: "%" }, ...releaseMarks(state.releases, run.starts[0], end) },
  }));
}

function showPerformance(figures) {
  at("performance").hidden = !figures.length;
  if (!figures.length) return;
  const known = (values) => values.some((v) => v !== null);
  at("blind").textContent = figures.some((f) => known(f.expected)) ? state.blind_spot : "";
  const latest = figures.reduce((a, b) => (last(b.ends) > last(a.ends) ? b : a));
  at("labelled").textContent = `Labels are known of ${whole(last(latest.labelled))} of ${whole(last(latest.rows))} rows in the window up to ${moment(last(latest.ends))}.`;
  const several = new Set(figures.map((f) => f.bundle)).size > 1;
  const shown = figures.slice().sort((a, b) => known(b.expected) - known(a.expected)).slice(0, MOST_FIGURES);
  grid(at("figures"), shown, (f) => ({
    title: several ? `${f.name}, ${f.bundle}` : f.name,
    note: `by labels ${short(last(f.realised))}` +
      (last(f.expected) === null ? "" : `, expected ${short(last(f.expected))} (${short(last(f.low))} to ${short(last(f.high))})`),
    traces: [
      line(f.ends, f.low, "low", "baseline", { mode: "lines", line: { width: 0 }, hoverinfo: "skip" }),
      line(f.ends, f.high, "high", "baseline", { mode: "lines", line: { width: 0 }, fill: "tonexty", fillcolor: faint("baseline", 0.22), hoverinfo: "skip" }),
      line(f.ends, f.expected, "expected", "baseline", { line: { color: colour("baseline"), width: 2, dash: "dash" } }),
      line(f.ends, f.realised, "by labels", "line"),
    ],
    layout: { yaxis: { rangemode: "normal" }, ...releaseMarks(state.releases, f.ends[0], last(f.ends)) },
  }));
}

// A figure for each of some facts, those there are used again.
function grid(place, list, make) {
  while (place.children.length > list.length) place.lastChild.remove();
  while (place.children.length < list.length) place.append(element("figure"));
  list.forEach((each, n) => draw(place.children[n], [each, state.releases], () => make(each)));
}

function showScore(score) {
  at("scores").hidden = !score;
  if (!score) return;
  at("of-scores").textContent = `Share of rows by score: the seven newest days of event time as bars${score.baseline ? ", the baseline as steps" : ""}.`;
  const bins = score.recent.map((_, n) => (n === 0 ? `≤ ${short(score.cuts[0])}` : n < score.cuts.length ? `to ${short(score.cuts[n])}` : `> ${short(last(score.cuts))}`));
  const places = bins.map((_, n) => n);
  const shares = (of) => of.map((share) => 100 * share);
  draw(at("score"), score, () => ({
    title: "Rows by score", note: score.baseline ? "" : "there is no baseline to compare with",
    traces: [
      { x: places, y: shares(score.recent), name: "newest days", type: "bar", marker: { color: faint("line", 0.75) } },
      ...(score.baseline ? [{ x: places, y: shares(score.baseline), name: "baseline", type: "scatter", mode: "lines", line: { color: colour("baseline"), width: 2, shape: "hvh" } }] : []),
    ],
    layout: {
      bargap: 0.08, showlegend: true, yaxis: { ticksuffix: "%" },
      xaxis: { type: "linear", tickvals: [0, Math.floor(places.length / 2), places.length - 1], ticktext: [0, Math.floor(places.length / 2), places.length - 1].map((n) => charts.label(bins[n])) },
    },
  }));
}

function showDrift(run) {
  at("drift").hidden = !run.drift.length;
  if (!run.drift.length) return;
  grid(at("series"), run.drift.slice(0, MOST_DRIFT), (d) => {
    const over = d.values.map((v, n) => (v > d.thresholds[n] ? v : null));
    return {
      title: d.feature, note: `${d.kind}, ${d.measure}: ${short(d.last[0])}, threshold ${short(d.last[1])}`, alarm: d.last[0] > d.last[1],
      traces: [
        line(d.ends, d.values, "value", "line"),
        line(d.ends, d.thresholds, "threshold", "text", { mode: "lines", line: { color: colour("text"), width: 1.5, dash: "dash" } }),
        line(d.ends, over, "above", "alarm", { mode: "markers", marker: { size: 8, color: colour("alarm") }, hoverinfo: "skip" }),
      ],
      layout: {},
    };
  });
  table(at("measures"), [["feature", "text"], ["kind"], ["measure"], ["newest", "n"], ["threshold", "n"], ["worst, of it", "n"]],
    run.drift.map((d) => [[d.feature], [d.kind], [d.measure], [short(d.last[0]), d.last[0] > d.last[1] ? "alarm" : ""], [short(d.last[1])],
      [d.worst === null ? "–" : percent(d.worst), d.worst === null || d.worst > 1 ? "alarm" : ""]]));
  if (run.more_drift) at("measures").append(element("p", `and ${run.more_drift} more`));
}

function showReleases(releases) {
  at("released").hidden = !releases.length;
  table(at("releases"), [["", "n"], ["from", "t"], ["champion"], ["canary"], ["shadows"], ["why", "text"], ["by"]],
    releases.slice().reverse().map((r) => [[String(r.seq)], [r.from === null ? "the beginning" : moment(r.from)], [r.champion], [r.canary || ""],
      [r.shadows.join(", ")], [r.why], [r.author]]));
}

function showLive(run) {
  at("live").hidden = !run.times || (!run.times.length && !Object.keys(run.events).length);
  if (at("live").hidden) return;
  const rate = run.times.length && run.rates.read ? `${whole(last(run.rates.read))} a second` : "–";
  const idle = run.backlog === 0 && run.waiting === 0;  // then time that passes is no lag
  const behind = idle ? "nothing waits" : `it is ${short(run.behind)} s behind ${run.replay ? "what is published" : "the clock"}`;
  at("reached").textContent = run.event_time === null ? "" :
    `Event time has come to ${moment(run.event_time)}${run.replay ? ". These are old events that are sent again" : ""}: ${behind}.`;
  facts(at("live-facts"), [
    ["events read", `${whole(run.events.read || 0)}`], ["read now", rate],
    ...(run.event_time === null ? [] : [["event time", moment(run.event_time)]]),
    ...(run.behind === null || idle ? [] : [[run.replay ? "behind what is published" : "behind the clock", `${short(run.behind)} s`]]),
    ...[["backlog", run.backlog], ["waiting", run.waiting], ["open incidents, by the run", run.open_incidents]].filter(([, n]) => n !== null).map(([name, n]) => [name, whole(n)]),
    ...Object.entries(run.scores).filter(([name]) => name).map(([name, n]) => [`decided ${name}`, whole(n)]),
    ...(run.memory === null ? [] : [["memory", `${whole(run.memory / 1048576)} MiB`]]),
    ...(run.state === null ? [] : [["history of windows", `${short(run.state / 1048576)} MiB`]]),
    ...(run.processor === null ? [] : [["processor", `${whole(run.processor)} s`]]),
    ...(run.a_million === null ? [] : [["a million events take", `${short(run.a_million)} processor s`]]),
  ]);
  const end = last(run.times) || 0;
  const xaxis = { range: [Math.min(run.times[0] || 0, end - 300000), end], nticks: 4, tickangle: 0 };
  draw(at("rates"), run.rates, () => ({
    title: "Events a second, by the clock", note: Object.entries(run.rates).map(([name, of]) => `${name} ${whole(last(of) || 0)}`).join(", "),
    traces: Object.entries(run.rates).map(([name, of], n) => line(run.times, of, name, SERIES[(n + 2) % SERIES.length],
      { mode: "lines", line: { color: faint(SERIES[(n + 2) % SERIES.length], n ? 1 : 0.45), width: n ? 2 : 6 } })),
    layout: { showlegend: true, xaxis },
  }));
  draw(at("latency"), run.latency, () => ({
    title: "Latency from published to written, by the clock",
    note: Object.entries(run.latency).map(([name, of]) => `${name} ${short(last(of))} ms`).join(", "),
    traces: Object.entries(run.latency).map(([name, of], n) => line(run.times, of, name, ["line", "baseline"][n], { mode: "lines" })),
    layout: { showlegend: true, xaxis, yaxis: { ticksuffix: " ms" } },
  }));
  showObjectives(at("live-objectives"), at("live-objectives"), run.objectives);
}

function showServed(told) {
  at("served").hidden = false;
  const known = (n, text) => (n === undefined || n === null ? "–" : text(n));
  facts(at("served-facts"), [
    ["ready", told.ready ? "yes" : "no", told.ready ? "ok" : "alarm"],
    ["requests that wait", known(told.queued, whole)],
    ["requests for scores", known(told.requests, (n) => `${short(n)} a second`)],
    ["half are answered within", known(told.p50, (n) => `${short(n)} ms`)],
    ["99% are answered within", known(told.p99, (n) => `${short(n)} ms`)],
    ...Object.entries(told.events).map(([name, n]) => [`events ${name}`, whole(n)]),
  ]);
  showObjectives(at("served-objectives"), at("served-objectives"), told.objectives);
}

at("sink").addEventListener("change", (event) => { chosen = event.target.value; show(); });
at("span").addEventListener("change", () => show());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => state && show());
addEventListener("load", look);
