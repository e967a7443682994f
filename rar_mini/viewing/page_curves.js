// Curves of metrics and scores; length over reward; time and cost.

const hidden = new Set(); // sources that are switched off
let range = null; // the steps that all curves show, null for all of them

const drawn = () => SOURCES.filter((source) => source.metrics && !hidden.has(source));
const tip = (source, what = "") => `${plain(source.name + what)}<br>step %{x}: %{y:.4~g}<extra></extra>`;

/** The mean of each value and of those before it, `span` in all. */
function smooth(values, span) {
  return values.map((_, n) => mean(values.slice(Math.max(0, n + 1 - span), n + 1)));
}

/** For each source a dot a step, and the running mean. */
function metricTraces(name, span) {
  return drawn().filter((source) => source.metrics[name]).flatMap((source) => {
    const { step, [name]: values } = source.metrics;
    const at = step.map((_, n) => n).filter((n) => values[n] != null);
    const [x, y] = [at.map((n) => step[n]), at.map((n) => values[n])];
    const [color, hovertemplate] = [colourOf(source), tip(source)];
    return [
      { x, y, mode: "markers", marker: { color, size: 4, opacity: span > 1 ? 0.35 : 1 }, hovertemplate },
      { x, y: smooth(y, span), mode: "lines", line: { color, width: 2 }, hovertemplate },
    ];
  });
}

const DASHES = { train: "solid", held_out: "dash" }; // those under gold judges are dotted

/** The scores of fresh answers. A bar is two standard errors of the change since the first score. */
function scoreTraces() {
  const splits = ({ scores = [] }) => [...new Set(scores.map((row) => row.split))].filter(isOfPolicy);
  return drawn().flatMap((source) => splits(source).map((split) => {
    const [rows, dash] = [source.scores.filter((row) => row.split === split), DASHES[split] || "dot"];
    return {
      x: rows.map((row) => row.step),
      y: rows.map((row) => row.mean),
      error_y: { type: "data", array: rows.map((row) => 2 * (row.error || 0)), thickness: 1, width: 3 },
      mode: "lines+markers",
      line: { color: colourOf(source), dash, width: 2 },
      hovertemplate: tip(source, `, ${setName(split)}`),
    };
  }));
}

/** What three answers earn that need no model, as thin lines: the scale of the first run that has one. */
function scale() {
  const words = { silence: "“I do not know.”", echo: "the question repeated", reference: "the reference answer" };
  const metrics = drawn().map((source) => source.metrics).find((each) => each["eval/train_silence_reward"]) || {};
  const lines = Object.entries(words).map(([name, text]) => [text, metrics[`eval/train_${name}_reward`]]);
  const given = lines.map(([text, values]) => [text, known(values || [])[0]]).filter(([, y]) => y != null);
  const line = { width: 1, dash: "dot", color: colour("soft") };
  return {
    shapes: given.map(([, y]) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line })),
    annotations: given.map(([text, y]) => ({ text, y, x: 1, xref: "paper", xanchor: "right", yanchor: "bottom",
      showarrow: false, font: { size: 10 } })),
  };
}

/** A figure of curves over steps, which zooms with the others. */
function curve(title, unit, traces, layout = () => ({})) {
  const ends = traces().map(({ y }) => y).filter((y) => y.length).map((y) => `${short(y[0])} to ${short(y.at(-1))}`);
  const flat = traces().every(({ y }) => y.every((value) => value === 0)); // else zero would be in the middle
  const container = picture(`${title}: from ${ends.join(", from ")}`, () => {
    const xaxis = { title: { text: "step", standoff: 4 }, ...(range && { range: [...range] }) };
    return { traces: traces(), layout: { ...layout(), xaxis, yaxis: flat ? { range: [-0.05, 1] } : {} } };
  });
  container.dataset.steps = "yes";
  const draw = pictures.get(container);
  pictures.set(container, () => {
    const first = !container.data;
    draw();
    if (first) container.on("plotly_relayout", (event) => zoom(container, event));
  });
  return make("figure", { class: "card" },
    make("figcaption", {}, bold(title), " ", small(unit)), container);
}

function zoom(zoomed, event) {
  const [low, high] = [event["xaxis.range[0]"], event["xaxis.range[1]"]];
  const next = event["xaxis.autorange"] ? null : low === undefined ? event["xaxis.range"] : [low, high];
  if (next === undefined || String(next) === String(range)) return; // another axis, or an echo of ours
  range = next;
  pictures.forEach((_, other) => {
    if (other === zoomed || !other.data || !other.dataset.steps) return;
    Plotly.relayout(other, range ? { "xaxis.range": [...range] } : { "xaxis.autorange": true });
  });
}

function curves() {
  const logged = new Set(SOURCES.flatMap((source) => Object.keys(source.metrics || {})));
  const names = [...logged].filter((name) => name !== "step");
  const sft = SOURCES.some((source) => source.about.method === "sft"); // the loss of GRPO says little
  const series = Object.keys(DATA.series).filter((name) => names.includes(name) && (name !== "loss" || sft));
  const main = [...series, ...names.filter((name) => name.startsWith("replay/"))];
  const longest = Math.max(1, ...SOURCES.map((source) => source.metrics?.step?.length || 0));
  let span = Math.max(1, Math.min(20, Math.floor(longest / 5)));
  let [all, part] = [false, ""];
  const [grid, output] = [make("div", { class: "grid" }), make("output")];
  const say = () => { output.textContent = span > 1 ? `mean of ${span} steps` : "off"; };

  function draw() {
    pictures.forEach((_, container) => { if (container.dataset.steps) pictures.delete(container); });
    const listed = all ? names.filter((name) => name.includes(part)).sort() : main;
    const drawable = listed.filter((name) => metricTraces(name, 1).some((trace) => trace.y.length));
    const fresh = !all && scoreTraces().length > 0;
    show(grid,
      fresh && curve("Fresh answers", "± 2 s.e.; dashed: held out", scoreTraces),
      drawable.map((name) => {
        const [title, unit] = (!all && DATA.series[name]) || [name, ""];
        return curve(title, unit, () => metricTraces(name, span), name === "reward" ? scale : undefined);
      }),
      !fresh && !drawable.length && make("p", {}, "No curve: nothing has been logged under such a name yet."));
  }

  const slider = make("input", { type: "range", min: 1, max: Math.max(2, Math.min(100, longest)), value: span,
    oninput: () => { span = +slider.value; say(); redraw(); } });
  const search = make("input", { type: "search", disabled: true, oninput: () => { part = search.value; draw(); } });
  const which = select([["main", "the main ones"], ["all", `all ${names.length}`]], "main", (value) => {
    all = value === "all";
    search.disabled = !all;
    draw();
  });
  const turn = (source) => (event) => { hidden[event.target.checked ? "delete" : "add"](source); draw(); };
  const box = (source) => make("input", { type: "checkbox", checked: true, onchange: turn(source) });
  const switches = SOURCES.filter((source) => source.metrics)
    .map((source) => make("label", { class: "switch" }, box(source), chip(source)));
  say();
  draw();
  return section("curves", "Curves",
    "Dots are steps, lines running means. Drag to zoom all curves at once, double-click to zoom out.",
    form(switches.length > 1 && make("fieldset", { class: "field" }, make("legend", {}, "Runs"), switches),
      field("Smoothing", slider, output), field("Metrics", which), field("Metric's name", search)), grid);
}

function lengths() {
  const sources = SOURCES.filter((source) => source.dots.length);
  if (!sources.length) return false;
  const trace = (source) => {
    const [step, x, y] = [0, 1, 2].map((n) => source.dots.map((dot) => dot[n]));
    const shades = { color: step, colorscale: [[0, colour("source-1")], [1, colour("source-0")]] };
    const marker = { size: 5, opacity: 0.6, ...(sources.length > 1 ? { color: colourOf(source) } : shades) };
    const hovertemplate = `${plain(source.name)}, step %{customdata}<br>%{x} tokens, reward %{y:.3f}<extra></extra>`;
    return { x, y, customdata: step, mode: "markers", marker, hovertemplate };
  };
  const container = picture("Reward over length of each answer", () => ({
    traces: sources.map(trace),
    layout: { height: 360, xaxis: { title: { text: "tokens of the answer" } }, yaxis: { title: { text: "reward" } } },
  }));
  const counts = sources.map((source) => `${source.name}: ${source.dots.length} of ${source.dots_of}`).join("; ");
  const shades = sources.length > 1 ? "" : " Colours go from the first step, orange, to the last, blue.";
  return section("length", "Length and reward", `A dot is an answer of training (${counts}).${shades}`,
    make("figure", { class: "card" }, container));
}

const STAGES = { sample: "sampling", judge: "judging", train: "training" };

function costs() {
  const runs = SOURCES.filter((source) => source.cost);
  if (!runs.length) return false;
  const bars = (source) => Object.entries(STAGES).map(([stage, name], n) => ({
    type: "bar",
    name,
    x: source.metrics.step,
    y: source.metrics[`perf/seconds_${stage}`],
    marker: { color: colour(`source-${n}`) },
    hovertemplate: `step %{x}, ${name}: %{y:.1f} s<extra></extra>`,
  })).filter(({ y }) => y);
  const figures = runs.map((source) => make("figure", { class: "card" }, make("figcaption", {}, chip(source)),
    picture(`Seconds of each step by stage, ${source.name}`, () => ({
      traces: bars(source),
      layout: { barmode: "stack", showlegend: true, legend: { orientation: "h", y: 1.15 },
        xaxis: { title: { text: "step" } }, yaxis: { title: { text: "seconds" } } },
    }))));
  const rows = runs.map((source) => [chip(source),
    ...Object.keys(STAGES).map((stage) => duration(source.cost.seconds[stage])),
    source.cost.questions.toLocaleString("en"), `$${source.cost.dollars.toFixed(4)}`]);
  const head = ["run", ...Object.values(STAGES), "questions to the judge", "cost of the judge"];
  return section("cost", "Time and cost", "", table("Time and cost", head, rows),
    make("div", { class: "grid" }, figures));
}
