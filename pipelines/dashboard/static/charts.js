// How figures are drawn. Texts from the data are cleaned before plotly has them, which reads some tags as markup.
"use strict";

const charts = (() => {
  const CONFIG = { displayModeBar: false, responsive: true, doubleClick: false, showTips: false };
  const drawn = new Map();

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const faint = (name, share) => colour(name) + Math.round(255 * share).toString(16).padStart(2, "0");
  // Without what is not shown, or turns the way that text runs.
  const clean = (text) => String(text).replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "\ufffd");
  const label = (text) => {
    const short = clean(text).length > 26 ? `${clean(text).slice(0, 25)}…` : clean(text);
    return short.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  };

  const axis = () => ({
    color: colour("soft"), gridcolor: colour("grid"), linecolor: colour("grid"), zeroline: false, fixedrange: true,
    automargin: true, nticks: 5,
  });

  function layout(more) {
    const { xaxis = {}, yaxis = {}, ...rest } = more;
    return {
      margin: { l: 44, r: 12, t: 14, b: 30 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("text") },
      hovermode: "x unified", hoverlabel: { bgcolor: colour("card"), bordercolor: colour("border"), font: { color: colour("text") } },
      dragmode: false, showlegend: false, legend: { orientation: "h", y: -0.18, x: 0, font: { size: 12 } },
      xaxis: { ...axis(), showgrid: false, type: "date", ...xaxis }, yaxis: { ...axis(), rangemode: "tozero", ...yaxis }, ...rest,
    };
  }

  // Draw into a figure what `make` gives, { title, note, traces, layout, alarm }, where `facts` are others than before.
  function draw(figure, facts, make) {
    const theme = matchMedia("(prefers-color-scheme: dark)").matches;
    const key = JSON.stringify([theme, facts]);
    if (drawn.get(figure) === key) return;
    drawn.set(figure, key);
    const { title, note, traces, alarm = false, ...rest } = make();
    let caption = figure.querySelector("figcaption"), plot = figure.querySelector(".plot");
    if (!plot) {
      caption = document.createElement("figcaption");
      plot = document.createElement("div");
      plot.className = "plot";
      figure.replaceChildren(caption, plot);
    }
    const more = document.createElement("span");
    more.textContent = clean(note || "");
    caption.replaceChildren(clean(title), more);
    figure.classList.toggle("alarm", alarm);
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", clean(`${title}. ${note || ""}`));
    Plotly.react(plot, traces, layout(rest.layout || {}), CONFIG);
  }

  const line = (x, y, name, of, more = {}) => ({
    x, y, name: label(name), type: "scatter", mode: x.length > 60 ? "lines" : "lines+markers", connectgaps: false,
    line: { color: colour(of), width: 2 }, marker: { size: 5 }, ...more,
  });

  // Lines at releases that take effect within the time that is shown.
  function releaseMarks(releases, first, last) {
    const shown = releases.filter((r) => r.from !== null && r.from >= first && r.from <= last);
    return {
      shapes: shown.map((r) => ({
        type: "line", x0: r.from, x1: r.from, yref: "paper", y0: 0, y1: 1, line: { color: colour("text"), width: 1, dash: "dot" },
      })),
      annotations: shown.slice(-8).map((r) => ({
        x: r.from, y: 1, yref: "paper", yanchor: "bottom", text: `release ${r.seq}`, showarrow: false, font: { size: 11, color: colour("soft") },
      })),
    };
  }

  return { clean, colour, draw, faint, label, line, releaseMarks };
})();
