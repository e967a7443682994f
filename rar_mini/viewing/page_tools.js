"use strict";

// What all sections of the page share: elements, numbers in words, the data, and pictures.
//
// The page shows what models and strangers wrote. `make` puts it there as text, and nothing here reads markup.
// Plotly does read a little of it, so that foreign text goes to Plotly through `plain`.

// --- elements ----------------------------------------------------------------------------------------------

/** An element. Attributes named on... are listeners, `css` has style properties; children are elements or text. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "css") Object.entries(value).forEach((pair) => element.style.setProperty(...pair));
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...there(children));
  return element;
}

const small = (...words) => make("small", {}, words);
const bold = (...words) => make("b", {}, words);
const there = (children) => children.flat(3).filter((child) => child !== false && child != null);
const show = (element, ...children) => element.replaceChildren(...there(children));

function section(id, title, lead, ...children) {
  const head = make("h2", { id: `${id}-title` }, title);
  const words = lead && make("p", { class: "lead" }, lead);
  return make("section", { id, "aria-labelledby": head.id }, head, words, children);
}

/** A table that scrolls in itself. A cell is text or an element. */
function table(name, head, rows) {
  const cell = (content, place) =>
    place ? make("td", {}, content) : make("th", { scope: "row" }, content);
  return make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": name },
    make("table", {},
      make("thead", {}, make("tr", {}, head.map((content) => make("th", { scope: "col" }, content)))),
      make("tbody", {}, rows.map((row) => make("tr", {}, row.map(cell))))));
}

const form = (...fields) => make("form", { class: "controls", onsubmit: (event) => event.preventDefault() }, fields);

let fields = 0;

/** A control under its label, and what stands beside it. */
function field(label, control, beside) {
  control.id = `field-${(fields += 1)}`;
  return make("div", { class: "field" }, make("label", { for: control.id }, label),
    beside ? make("div", { class: "row" }, control, beside) : control);
}

/** A choice of [value, text] pairs. */
function select(options, chosen, changed) {
  return make("select", { onchange: (event) => changed(event.target.value) },
    options.map(([value, text]) => make("option", { value, selected: String(value) === String(chosen) }, text)));
}

/** The first rows of a list, and a button for more. */
function more(rows, most, raise) {
  if (rows.length <= most) return false;
  return make("button", { class: "more", onclick: raise }, `Show more (${rows.length - most})`);
}

// --- numbers -----------------------------------------------------------------------------------------------

const known = (values) => values.filter((value) => value != null);
const mean = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null);
const fixed = (value, digits = 3) => (value == null ? "–" : value.toFixed(digits));
const written = (value) => (typeof value === "string" ? value : JSON.stringify(value));

function signed(value, digits = 3) {
  if (value == null) return "–";
  return (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
}

function short(value) {
  if (value == null) return "–";
  return typeof value === "number" ? String(+value.toPrecision(4)) : written(value);
}

const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

function duration(seconds) {
  if (seconds < 90) return `${seconds.toFixed(0)} s`;
  return seconds < 5400 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

// --- the data ----------------------------------------------------------------------------------------------

let DATA; // as page.py gathered it
let SOURCES; // runs and files
let GROUPS; // answers to one question: of a step, of an evaluation, of a file

const SETS = {
  rollouts: "training rollouts",
  train: "fresh, training questions",
  held_out: "fresh, held out",
  healthbench: "HealthBench",
  gpqa: "GPQA",
  scores: "scored file",
};
const OF_GOLD = /^held_out_gold(\d*)$/;

/** Whether a policy gave a set's answers; else they are those of the scale. */
const isOfPolicy = (set) => Object.hasOwn(SETS, set) || OF_GOLD.test(set);

function setName(set) {
  if (Object.hasOwn(SETS, set)) return SETS[set];
  return set.replace(OF_GOLD, `${SETS.held_out}, gold judge $1`).trim().replaceAll("_", " ");
}

async function unpack() {
  const packed = atob(document.getElementById("data").textContent);
  const bytes = new Uint8Array(packed.length); // Uint8Array.from takes 30 times as long
  for (let n = 0; n < bytes.length; n += 1) bytes[n] = packed.charCodeAt(n);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  DATA = await new Response(stream).json();
  SOURCES = DATA.sources;
  SOURCES.forEach((source, number) => { source.number = number; });
  GROUPS = SOURCES.flatMap((source) => source.groups.map((group) => ({
    ...group,
    source,
    question: source.questions[group.q],
    items: group.items.map((item) => source.items[item]),
  })));
  GROUPS.forEach((group, number) => { group.number = number; });
}

/** Where a group is from, in words. */
function whence(group) {
  const run = group.source.kind === "run";
  const parts = [SOURCES.length > 1 && group.source.name, setName(group.set), run && `step ${group.step}`];
  return parts.filter(Boolean).join(" · ");
}

/** A source's name with its colour. */
function chip(source) {
  const dot = make("span", { class: "dot", css: { background: `var(--source-${source.number % 6})` } });
  return make("span", { class: "chip" }, dot, make("bdi", {}, source.name));
}

// --- pictures ----------------------------------------------------------------------------------------------

const pictures = new Map(); // by container: the function that draws it
const inSight = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    inSight.unobserve(target);
    pictures.get(target)?.();
  }
}, { rootMargin: "300px" });

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const colourOf = (source) => colour(`source-${source.number % 6}`);

/** Foreign text for Plotly: no tag, no entity and no field of a template. */
const plain = (text) => text.replace(/[&<>%"]/g, (character) => `&#${character.charCodeAt(0)};`);

/** A container that is drawn once it comes into sight. `parts()` returns the traces and what the layout adds. */
function picture(label, parts) {
  const container = make("div", { class: "plot", role: "img", "aria-label": label });
  pictures.set(container, () => {
    const { traces, layout = {} } = parts();
    Plotly.react(container, traces, { ...look(), ...layout, xaxis: { ...axis(), ...layout.xaxis },
      yaxis: { ...axis(), ...layout.yaxis } }, { displayModeBar: false, responsive: true });
  });
  inSight.observe(container);
  return container;
}

function look() {
  return {
    height: 220,
    margin: { l: 46, r: 10, t: 8, b: 36 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 11, color: colour("soft") },
    hoverlabel: { bgcolor: colour("paper"), bordercolor: colour("line"), font: { color: colour("ink") } },
    showlegend: false,
    dragmode: "zoom",
  };
}

const axis = () => ({ gridcolor: colour("line"), zerolinecolor: colour("line"), automargin: true });

/** Draw again what has been drawn: after a change of smoothing, or from light to dark. */
function redraw() {
  pictures.forEach((draw, container) => { if (container.data) draw(); });
}
