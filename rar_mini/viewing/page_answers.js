// Answers: filters, the matrix of verdicts of a group, and two groups side by side.

const MISSING = "(The file has no such text; --data names a file that has.)";

// --- filters -----------------------------------------------------------------------------------------------

const wanted = { source: "", set: "", from: "", to: "", question: "", category: "", verdict: "", advantage: "",
  text: "", group: "" };

const VERDICTS = {
  met: (verdict) => verdict != null && verdict >= 0.5,
  unmet: (verdict) => verdict != null && verdict < 0.5,
  none: (verdict) => verdict == null,
};
const ADVANTAGES = { above: (value) => value > 0, below: (value) => value < 0, zero: (value) => value === 0 };
const CHOICES = { verdict: VERDICTS, advantage: ADVANTAGES };

const includes = (text, part) => !part || (text || "").toLowerCase().includes(part.toLowerCase());

/** The answers of a group that fit the filters. */
function fitting(group) {
  const { id, text, tags = [] } = group.question;
  const out = (wanted.source !== "" && group.source.number !== +wanted.source)
    || (wanted.set && group.set !== wanted.set)
    || (wanted.from !== "" && group.step < +wanted.from)
    || (wanted.to !== "" && group.step > +wanted.to)
    || ![id, ...tags].some((name) => includes(name, wanted.question));
  if (out) return [];
  const shared = [text, ...group.items.flatMap((item) => [item.title, item.text])];
  const whole = shared.some((each) => includes(each, wanted.text));
  return group.answers.filter((answer) => verdictsFit(group.items, answer)
    && (!wanted.advantage || ADVANTAGES[wanted.advantage](answer.advantage ?? 0))
    && (whole || includes(answer.text, wanted.text)));
}

/** Whether an item of the wanted category has the wanted verdict. */
function verdictsFit(items, answer) {
  if (!wanted.category && !wanted.verdict) return true;
  return items.some((item, k) => (!wanted.category || item.category === wanted.category)
    && (!wanted.verdict || VERDICTS[wanted.verdict](answer.verdicts[k])));
}

/** The form of the filters. `changed` is called a moment after the last change. */
function filters(changed) {
  let timer;
  const set = (name) => (value) => {
    wanted[name] = value;
    clearTimeout(timer);
    timer = setTimeout(changed, 120);
  };
  const input = (name, type, attributes) =>
    make("input", { type, value: wanted[name], ...attributes, oninput: (event) => set(name)(event.target.value) });
  const choice = (name, options) => select([["", "any"], ...options], wanted[name], set(name));
  const values = (of) => [...new Set(GROUPS.flatMap(of))].sort().map((name) => [name, setName(name)]);
  const stepped = SOURCES.some((source) => source.kind === "run");
  return form(
    SOURCES.length > 1 && field("Run", choice("source", SOURCES.map((source) => [source.number, source.name]))),
    field("Answers", choice("set", values((group) => group.set))),
    stepped && field("Steps from", input("from", "number", { min: 0, class: "narrow" })),
    stepped && field("to", input("to", "number", { min: 0, class: "narrow" })),
    field("Question", input("question", "search", { placeholder: "part of its name" })),
    field("Category", choice("category", values((group) => group.items.map((item) => item.category)))),
    field("Verdict", choice("verdict", [["met", "met"], ["unmet", "not met"], ["none", "missing"]])),
    field("Advantage", choice("advantage", [["above", "above 0"], ["below", "below 0"], ["zero", "0"]])),
    field("Text", input("text", "search", { placeholder: "in question, items, answers" })));
}

/** Filters stand in the address: a page that was written anew opens where it was left. */
function remember() {
  const set = Object.entries(wanted).filter(([, value]) => value !== "");
  history.replaceState(null, "", `#${encodeURIComponent(JSON.stringify(Object.fromEntries(set)))}`);
}

function recall() {
  try {
    const found = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    for (const name of Object.keys(wanted)) {
      const isChoice = !CHOICES[name] || found[name] === "" || Object.hasOwn(CHOICES[name], found[name]);
      if (typeof found[name] === "string" && isChoice) wanted[name] = found[name];
    }
  } catch {
    // an address without filters
  }
}

// --- the section -------------------------------------------------------------------------------------------

/** What finds a group again on a page that was written anew. */
const placeOf = (group) => [group.source.number, group.set, group.step, group.question.id].join(" ");

function answers() {
  const [list, detail] = [make("div", { class: "list" }), make("div", { class: "detail" })];
  const count = make("p", { class: "count", role: "status" });
  const newest = GROUPS.toSorted((a, b) =>
    a.source.number - b.source.number || (b.set === "rollouts") - (a.set === "rollouts") || b.step - a.step);
  let most = 100;

  function choose(group) {
    wanted.group = placeOf(group);
    remember();
    for (const button of list.querySelectorAll(".entry")) {
      button.setAttribute("aria-pressed", button.dataset.group === String(group.number));
    }
    show(detail, groupView(group, new Set(fitting(group))));
  }

  function draw() {
    const found = newest.map((group) => ({ group, fits: fitting(group).length })).filter(({ fits }) => fits);
    const total = found.reduce((sum, { fits }) => sum + fits, 0);
    count.textContent = `${found.length} of ${GROUPS.length} groups on this page, ${counted(total, "answer")}`;
    show(list, found.slice(0, most).map(({ group, fits }) => entry(group, fits, () => choose(group))),
      more(found, most, () => { most += 200; draw(); }));
    const chosen = found.find(({ group }) => placeOf(group) === wanted.group) || found[0];
    if (chosen) choose(chosen.group);
    else show(detail, make("p", {}, "No answer fits these filters."));
  }

  draw();
  return section("answers", "Answers",
    "A row is an answer, a column an item of the rubric, as wide as its weight. Choose a row to read the answer. "
    + "In the list, bars are rewards, with their mean.",
    filters(() => { most = 100; remember(); draw(); }), make("p", { class: "note" }, sampleNote()), count,
    make("div", { class: "answers" }, list, detail));
}

/** By which rule answers were left out of the page. */
function sampleNote() {
  const parts = SOURCES.flatMap((source) => Object.entries(source.sample || {})
    .filter(([, { kept, of }]) => kept < of)
    .map(([what, { kept, of, every }]) => {
      const unit = { rollouts: "step", evaluations: "evaluation", questions: "question" }[what];
      return `${source.name}: ${kept} of ${of} groups, from one ${unit} in ${every}, the first and the last included`;
    }));
  if (!parts.length) return "Every answer is on this page.";
  return `To stay small, the page keeps the answers of ${parts.join("; ")}. `
    + "Numbers, items and curves count every answer; --all keeps all.";
}

/** A group in the list: where it is from, and a bar for the reward of each answer. */
function entry(group, fits, onclick) {
  const rewards = group.answers.map((answer) => answer.reward);
  const top = Math.max(1, ...known(rewards));
  const bar = (reward) => make("i", { class: reward == null ? "none" : "",
    css: { height: `${Math.max(6, (100 * (reward ?? 0)) / top)}%` } });
  const part = fits < rewards.length ? `, ${fits} of ${rewards.length}` : "";
  return make("button", { class: "entry", "data-group": group.number, "aria-pressed": "false", onclick },
    make("span", { class: "where" }, make("bdi", {}, group.question.id), small(whence(group))),
    make("span", { class: "bars", "aria-hidden": "true" }, rewards.slice(0, 32).map(bar)),
    small(`${fixed(mean(known(rewards)), 2)}${part}`));
}

// --- a group -----------------------------------------------------------------------------------------------

function verdictText(verdict) {
  if (verdict == null) return "?";
  return Number.isInteger(verdict) ? String(verdict) : verdict.toFixed(2).replace("0.", ".");
}

/** A verdict in a coloured box: blue earns, orange does not. An item of negative weight earns if it is not met. */
function badge(item, verdict, tag = "span", attributes = {}) {
  const earned = verdict == null ? null : item.weight < 0 ? 1 - verdict : verdict;
  const tone = earned == null ? "missing" : earned > 0.77 ? "met" : earned > 0.2 ? "half" : "unmet";
  const look = { class: `verdict ${tone}`, css: { "--earned": earned ?? 0 } };
  return make(tag, { ...attributes, ...look }, verdictText(verdict));
}

/** An answer's numbers on one line. */
function numbers(answer) {
  return [
    answer.reward == null ? "no reward" : `reward ${fixed(answer.reward)}`,
    answer.advantage != null && `advantage ${signed(answer.advantage, 2)}`,
    answer.rating != null && `rating ${short(answer.rating)}`,
    answer.tokens != null && `${answer.tokens} tokens`,
    answer.finished === false && "cut",
    answer.trained === false && "not trained",
    answer.note,
  ].filter(Boolean).join(" · ");
}

const best = (answers) => answers.toSorted((a, b) => (b.reward ?? -Infinity) - (a.reward ?? -Infinity));

/** The question, the matrix of its answers, the best ones first, and beside it the answer that is read. */
function groupView(group, fits) {
  const reading = make("div", { class: "reading", "aria-live": "polite" });
  const sorted = best(group.answers);
  const rows = sorted.map((answer, n) =>
    matrixRow(group, answer, fits.has(answer), () => read(n), (event) => move(event, n)));

  function read(n) {
    rows.forEach((row, at) => {
      row.classList.toggle("chosen", at === n);
      row.querySelector("button").setAttribute("aria-pressed", at === n);
    });
    show(reading, answerCard(group, sorted[n]));
  }

  function move(event, n) {
    const next = { ArrowDown: n + 1, ArrowUp: n - 1 }[event.key];
    if (!rows[next]) return;
    event.preventDefault();
    rows[next].querySelector("button").focus();
    read(next);
  }

  read(Math.max(0, sorted.findIndex((answer) => fits.has(answer))));
  return [questionOf(group), make("div", { class: "pair" }, make("div", {}, matrix(group, rows), legend()), reading)];
}

function questionOf(group) {
  const { id, text, reference } = group.question;
  return make("div", { class: "question" },
    make("h3", {}, make("bdi", {}, id), " ", small(whence(group))),
    prose(text || MISSING),
    reference && make("details", {}, make("summary", {}, "Reference answer"), prose(reference)),
    !DATA.inline && sideBySide.has(group)
      && make("button", { class: "link", onclick: () => sideBySide.open(group) }, "Compare answers side by side"));
}

/** Answers by items. A column is as wide as its item's weight. */
function matrix(group, rows) {
  const weights = group.items.map((item) => Math.max(0.25, Math.abs(item.weight)));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const widths = weights.map((weight) => make("col", { css: { width: `${(100 * weight) / total}%` } }));
  const heads = group.items.map((item) =>
    make("th", { scope: "col", title: `${item.title}: ${kind(item)}` }, make("span", {}, item.title)));
  return make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Verdicts: answers by items" },
    make("table", { class: "matrix", css: { "--items": group.items.length } },
      make("colgroup", {}, make("col", { class: "who" }), widths),
      make("thead", {}, make("tr", {}, make("td", {}, small("reward, advantage, tokens")), heads)),
      make("tbody", {}, rows)));
}

function matrixRow(group, answer, fits, onclick, onkeydown) {
  const head = make("button", { class: "answer", "aria-pressed": "false", onclick, onkeydown },
    bold(fixed(answer.reward)), make("span", {}, signed(answer.advantage, 2)), small(short(answer.tokens)));
  const cells = group.items.map((item, k) => badge(item, answer.verdicts[k], "td", { onclick, title: item.title }));
  return make("tr", { class: fits ? "" : "dim" }, make("th", { scope: "row" }, head), cells);
}

function legend() {
  const box = (verdict) => badge({ weight: 1 }, verdict);
  return make("p", { class: "legend" }, box(1), " earns ", box(0.5), " earns half ", box(0), " earns nothing ",
    box(null), " no verdict. An item of negative weight earns if it is not met.");
}

const kind = (item) => `${item.category}, weight ${short(item.weight)}${item.checked ? ", by a rule" : ""}`;

/** An answer with the verdict on each item, and what each item asks. */
function answerCard(group, answer) {
  const item = (each, k) => {
    const asks = each.text && make("p", { title: each.asks }, each.text);
    const words = make("div", {}, bold(each.title), " ", small(kind(each)), asks);
    return make("li", {}, badge(each, answer.verdicts[k]), words);
  };
  return make("article", { class: "card" }, make("p", { class: "meta" }, numbers(answer)), said(answer),
    make("ul", { class: "items" }, group.items.map(item)));
}

const prose = (text) => make("p", { class: "text" }, text);
const said = (answer) => prose(answer.text === "" ? "(nothing)" : answer.text ?? MISSING);

// --- side by side ------------------------------------------------------------------------------------------

const sideBySide = {
  key: (group) => `${group.question.id}\n${group.question.text || ""}`,

  has(group) { return this.questions.has(this.key(group)); },

  build() {
    const byQuestion = new Map();
    for (const group of GROUPS) byQuestion.set(this.key(group), [...(byQuestion.get(this.key(group)) || []), group]);
    this.questions = new Map([...byQuestion].filter(([, groups]) => groups.length > 1));
    [this.controls, this.body] = [form(), make("div")];
    if (this.questions.size) this.choose(this.questions.keys().next().value);
    else show(this.body, make("p", {}, "No question has two groups of answers on this page."));
    return section("compare", "Side by side", "The same question before and after, or as two policies answered it.",
      this.controls, this.body);
  },

  /** Take a question: on the left its first group, or the given one, on the right the last group of that kind. */
  choose(key, left) {
    const groups = this.questions.get(key).toSorted((a, b) => a.source.number - b.source.number || a.step - b.step);
    const ofPolicy = groups.filter((group) => isOfPolicy(group.set));
    this.left = left || ofPolicy[0] || groups[0];
    const others = groups.filter((group) => group !== this.left);
    this.right = others.findLast((group) => group.set === this.left.set) || others.at(-1);
    Object.assign(this, { chosen: key, groups });
    this.draw();
  },

  open(group) {
    this.choose(this.key(group), group);
    document.getElementById("compare").scrollIntoView();
  },

  draw() {
    const options = this.groups.map((group) => [group.number, whence(group)]);
    const put = (name) => (number) => { this[name] = GROUPS[number]; this.draw(); };
    const side = (name) => select(options, this[name].number, put(name));
    const questions = [...this.questions].map(([key, [group]]) => [key, group.question.id]);
    show(this.controls, field("Question", select(questions, this.chosen, (key) => this.choose(key))),
      field("Left", side("left")), field("Right", side("right")));
    const head = ["item", "category", "weight", "left", "right", "change"];
    const items = [...this.left.items, ...this.right.items.filter((item) => placeIn(this.left, item) < 0)];
    show(this.body, make("p", { class: "text question" }, this.left.question.text || this.left.question.id),
      table("Items of this question", head, items.map((item) => this.row(item))),
      make("div", { class: "two" }, this.column(this.left), this.column(this.right)));
  },

  row(item) {
    const [before, after] = [rate(this.left, item), rate(this.right, item)];
    const change = before == null || after == null ? null : after - before;
    return [make("span", { title: item.asks || item.text }, item.title), item.category, short(item.weight),
      badge(item, before), badge(item, after), delta(change)];
  },

  column(group) {
    const rewards = known(group.answers.map((answer) => answer.reward));
    return make("div", {}, make("h3", {}, whence(group)),
      make("p", { class: "meta" }, `mean reward ${fixed(mean(rewards))}, ${counted(group.answers.length, "answer")}`),
      best(group.answers).map((answer, n) => make("details", { class: "card", open: n < 4 },
        make("summary", {}, numbers(answer)), said(answer))));
  },
};

/** Where a group has an item, or one of another file that says the same; -1 if nowhere. */
const placeIn = (group, item) =>
  group.items.findIndex((each) => each.title === item.title && each.text === item.text);

/** The mean verdict of a group on an item. */
function rate(group, item) {
  const k = placeIn(group, item);
  return k < 0 ? null : mean(known(group.answers.map((answer) => answer.verdicts[k])));
}

/** A change of a mean verdict as a number, and as a bar to the left or the right. */
function delta(value) {
  if (value == null) return "–";
  const bar = { width: `${Math.min(50, 50 * Math.abs(value))}%`, [value < 0 ? "right" : "left"]: "50%" };
  return make("span", { class: "delta" }, make("span", {}, signed(value, 2)),
    make("div", { "aria-hidden": "true" }, make("i", { class: value < 0 ? "down" : "up", css: bar })));
}
