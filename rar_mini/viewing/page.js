// The page itself: overview, items and settings, and the order of all sections. It comes last: the parts before
// it define what it calls.

function overview() {
  const runs = SOURCES.filter((source) => source.kind === "run");
  const alarms = runs.flatMap((source) => source.alarms.map(({ step, alarm, says }) =>
    make("li", {}, bold(`${source.name}, step ${step}: ${alarm}. `), says)));
  const files = SOURCES.filter((source) => source.table);
  const results = [...new Set(files.flatMap((source) => Object.keys(source.table)))];
  const head = ["run", "policy", "judge", "steps", "reward, first → last step",
    "fresh answers, training (± standard error)", "fresh answers, held out", "time of the steps' stages, without evaluations", "cost of the judge"];
  const resultRow = (name) =>
    [name.replace(/^(axes|themes)\./, ""), ...files.map((source) => short(source.table[name]))];
  return section("overview", "Overview", "",
    runs.length > 0 && table("Runs", head, runs.map(runRow)),
    alarms.length > 0 && make("div", { class: "card alarm" }, make("h3", {}, "Alarms"), make("ul", {}, alarms)),
    files.length > 0 && table("Results", ["result", ...files.map(chip)], results.map(resultRow)));
}

function runRow(source) {
  const { about, metrics, cost } = source;
  const rewards = known(metrics.reward || []);
  const seconds = Object.values(cost.seconds).reduce((sum, each) => sum + each, 0);
  return [chip(source), short(about.policy), `${short(about.judge)}, ${short(about.method)}`,
    `${Math.max(0, ...(metrics.step || []))} of ${short(about.steps)}`,
    rewards.length ? `${fixed(rewards[0])} → ${fixed(rewards.at(-1))}` : "–",
    change(source, "train"), change(source, "held_out"), duration(seconds), `$${cost.dollars.toFixed(2)}`];
}

/** The first and the last score of a split. */
function change(source, split) {
  const rows = source.scores.filter((row) => row.split === split);
  if (rows.length < 2) return fixed(rows[0]?.mean);
  const [first, last] = [rows[0], rows.at(-1)];
  return `${fixed(first.mean)} → ${fixed(last.mean)} (${signed(last.change)} ± ${fixed(last.error)})`;
}

// --- items -------------------------------------------------------------------------------------------------

const ITEMS = { // by name: what it says, which items it lists, and by what they are sorted
  moved: ["moved most", (row) => row.change, (row) => Math.abs(row.change)],
  never: ["never met (dead)", (row) => row.of > 1 && row.met === 0, (row) => row.of],
  always: ["always met (dead)", (row) => row.of > 1 && row.met === row.of, (row) => row.of],
  parted: ["judge and gold judge part", (row) => row.parted > 0, (row) => row.parted / row.compared],
};

function items() {
  const all = SOURCES.flatMap((source) => source.moves.map((row) => itemRow(source, row)));
  let [name, set, most] = ["moved", "", 40];
  const body = make("div");

  function draw() {
    const [, listed, rank] = ITEMS[name];
    const found = all.filter((row) => listed(row) && (!set || row.set === set)).sort((a, b) => rank(b) - rank(a));
    const head = ["item", "question", "category, weight", "answers", "first", "last", "change", "met", "judges part"];
    const rows = found.slice(0, most).map(itemCells);
    show(body, rows.length ? table("Items", head, rows) : make("p", {}, "No such item."),
      more(found, most, () => { most += 100; draw(); }));
  }

  const kinds = Object.entries(ITEMS).map(([key, [words, listed]]) => {
    const shown = all.filter(listed).length; // fewer than there are if the page is full
    const total = SOURCES.reduce((sum, { counted }) => sum + counted[key], 0);
    return [key, `${words} (${shown < total ? `${shown} of ` : ""}${total})`];
  });
  const sets = [...new Set(all.map((row) => row.set))].map((each) => [each, setName(each)]);
  draw();
  return section("items", "Items", "How the mean verdict on an item changed from the first step that asked about it "
    + "to the last. An item that every answer meets, or none, teaches nothing.",
  form(field("Items", select(kinds, name, (value) => { [name, most] = [value, 40]; draw(); })),
    field("Answers", select([["", "any"], ...sets], set, (value) => { set = value; draw(); }))), body);
}

function itemRow(source, row) {
  const rateAt = ([step, sum, count]) => ({ step, rate: count ? sum / count : null });
  const [item, before, after] = [source.items[row.item], rateAt(row.first), rateAt(row.last)];
  const change = after.rate - before.rate;
  return { ...row, source, item, question: source.questions[item.q], before, after, change };
}

function itemCells({ source, item, question, set, before, after, change, met, of, parted, compared }) {
  const at = ({ step, rate }) => make("span", {}, badge(item, rate), ` step ${step}`);
  return [make("span", { title: item.asks || item.text }, item.title), make("bdi", {}, question.id), kind(item),
    SOURCES.length > 1 ? `${source.name}: ${setName(set)}` : setName(set), at(before), at(after), delta(change),
    `${met} of ${of}`, compared ? `${parted} of ${compared}` : "–"];
}

// --- settings ----------------------------------------------------------------------------------------------

function settings() {
  const runs = SOURCES.filter((source) => source.kind === "run");
  const differ = DATA.differences.map(([name, ...values]) => [name, ...values.map(short)]);
  return section("settings", "Settings", "",
    runs.length > 1 && (differ.length ? table("Settings that differ", ["differs", ...runs.map(chip)], differ)
      : make("p", {}, "The runs have the same settings and versions.")),
    SOURCES.map((source) => make("details", {}, make("summary", {}, `Settings and versions of ${source.name}`),
      source.explained && make("p", { class: "note" }, source.explained),
      table(`Settings of ${source.name}`, ["setting", "value"],
        Object.entries(source.about).map(([name, value]) => [name, written(value)])))));
}

// --- the page ----------------------------------------------------------------------------------------------

/** Groups alone, in a notebook. */
function inline() {
  document.querySelectorAll(".skip, header").forEach((element) => element.remove());
  show(document.getElementById("main"),
    GROUPS.map((group) => make("section", {}, groupView(group, new Set(group.answers)))));
}

async function open() {
  await unpack();
  if (DATA.inline) return inline();
  recall();
  const beside = GROUPS.length > 0 && sideBySide.build(); // before the answers, which refer to it
  const title = SOURCES.map((source) => source.name).join(", ");
  document.title = `${title} – rar-mini`;
  document.getElementById("title").textContent = title;
  const sections = there([
    overview(),
    SOURCES.some((source) => source.metrics) && curves(),
    GROUPS.length > 0 && answers(),
    beside,
    SOURCES.some((source) => source.moves.length) && items(),
    lengths(),
    costs(),
    settings(),
  ]);
  const link = (each) => make("a", { href: `#${each.id}`, onclick: (event) => {
    event.preventDefault(); // the address keeps the filters
    each.scrollIntoView();
  } }, each.querySelector("h2").textContent);
  show(document.getElementById("main"), sections);
  show(document.getElementById("nav"), sections.map(link));
  performance.mark("shown");
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

open().catch((error) => {
  const words = `This page could not be shown (it needs a browser of 2023 or later): ${error.message}`;
  document.getElementById("main").textContent = words;
  throw error;
});
