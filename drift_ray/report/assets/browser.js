// The browser of trajectories: filters, list and detail.

const PAIR_OUTCOMES = [
  ["", "any"], ["won", "wrong → right"], ["lost", "right → wrong"], ["right", "both right"], ["wrong", "both wrong"],
];
const OUTCOMES = [["", "any"], ["solved", "solved"], ["failed", "not solved"]];
const ORDERS = [["", "as sampled"], ["high", "weight, high to low"], ["low", "weight, low to high"], ["return", "return, low to high"], ["turns", "turns, most first"]];
const PAIR_ORDERS = [["", "as sampled"], ["turns", "turns, most first"]];

class Browser {
  constructor(data) {
    this.data = data;
    this.modes = data.modes();
    this.form = document.getElementById("filters");
    this.count = document.getElementById("count");
    this.detail = document.getElementById("detail");
    const draw = (item) => this.drawRow(item);
    this.list = new List(document.getElementById("list"), document.getElementById("spacer"), draw,
      (item, byHand) => this.showDetail(item, byHand));
    this.highest = data.rows.w.reduce((most, weight) => Math.max(most, Math.abs(weight ?? 0)), 1e-9);
    fill(this.form.mode, this.modes.map((mode, index) => [String(index), mode.title]));
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("input", (event) => (event.target === this.form.mode ? this.enter() : this.apply()));
    this.enter();
  }

  get mode() { return this.modes[Number(this.form.mode.value)]; }

  enter() {
    const { paired, items } = this.mode;
    const most = items.reduce((turns, item) => Math.max(turns, ...item.rows.map((row) => this.data.turnsOf(row).length)), 1);
    const turns = Array.from({ length: most }, (_, index) => [String(index + 1), String(index + 1)]);
    fill(this.form.turn, [["", "any"], ...turns, ["0", "never"]]);
    fill(this.form.outcome, paired ? PAIR_OUTCOMES : OUTCOMES);
    fill(this.form.order, paired ? PAIR_ORDERS : ORDERS);
    for (const label of this.form.querySelectorAll(".weight")) label.hidden = paired;
    this.apply();
  }

  apply() {
    const { items } = this.mode;
    const keep = this.condition();
    const found = this.ordered(items.filter(keep));
    this.count.textContent = `${found.length.toLocaleString("en")} of ${items.length.toLocaleString("en")}`;
    this.list.show(found, found.length ? 0 : -1);
    if (found.length) this.list.select(0, false);
    else this.detail.replaceChildren(make("p", "empty", "Nothing fits these filters."));
  }

  condition() {
    const { text, outcome: wanted, turn, low, high } = this.form;
    const { rows, haystack } = this.data;
    const words = text.value.trim().toLowerCase();
    const least = low.value === "" ? -Infinity : Number(low.value);
    const most = high.value === "" ? Infinity : Number(high.value);
    const weighed = !this.mode.paired && (least > -Infinity || most < Infinity);
    return (item) => {
      const last = item.rows[item.rows.length - 1];
      if (words && !haystack[rows.prompt[item.row]].includes(words)) return false;
      if (wanted.value && this.outcomeOf(item) !== wanted.value) return false;
      if (turn.value !== "" && rows.first[last] !== Number(turn.value)) return false;
      if (!weighed) return true;
      const weight = rows.w[item.row];
      return weight !== null && weight >= least && weight <= most;
    };
  }

  outcomeOf(item) {
    const { first } = this.data.rows;
    if (!this.mode.paired) return first[item.row] ? "solved" : "failed";
    if (item.before === null || item.after === null) return "";
    const [before, after] = [first[item.before] > 0, first[item.after] > 0];
    return before === after ? (after ? "right" : "wrong") : after ? "won" : "lost";
  }

  ordered(items) {
    const { w, ret } = this.data.rows;
    const turns = (item) => Math.max(...item.rows.map((row) => this.data.turnsOf(row).length));
    const keys = {
      high: (item) => -(w[item.row] ?? -Infinity), low: (item) => w[item.row] ?? Infinity,
      return: (item) => ret[item.row] ?? Infinity, turns: (item) => -turns(item),
    };
    const key = keys[this.form.order.value];
    return key ? items.map((item) => [key(item), item]).sort((a, b) => a[0] - b[0]).map((each) => each[1]) : items;
  }

  drawRow(item) {
    const { data } = this;
    const title = make("div", "", abridged(data.question(item.row), 160) || data.promptId(item.row));
    if (this.mode.paired) {
      return make("div", "", title, make("div", "sub", outcome(data, item.before), "→", outcome(data, item.after), make("span", "", `#${data.rows.index[item.row]}`)));
    }
    const { ret, w, index } = data.rows;
    const facts = make("div", "sub", outcome(data, item.row));
    if (ret[item.row] !== null) facts.append(make("span", "", `R ${short(ret[item.row])}`), make("span", "", `w ${short(w[item.row])}`));
    facts.append(make("span", "", `#${index[item.row]}`));
    const meter = make("i", "meter");
    meter.style.width = `${(100 * Math.abs(w[item.row] ?? 0)) / this.highest}%`;
    return make("div", "", title, facts, meter);
  }

  showDetail(item, byHand) {
    const { data } = this;
    const gold = data.gold(item.row);
    const id = `${data.promptId(item.row)} #${data.rows.index[item.row]}`;
    const head = [make("h3", "", id), make("p", "meta", `expected answer ${gold || "none"}`)];
    if (this.mode.paired) {
      const side = (name, row) => make("div", "", make("h4", "", name, " ", outcome(data, row)), row === null ? "Not in this page." : conversation(data, row));
      this.detail.replaceChildren(...head, make("div", "sides", side("reference", item.before), side("trained", item.after)), legend());
    } else {
      head[1].append(` · ended: ${data.texts[data.rows.end[item.row]]}`);
      this.detail.replaceChildren(...head, conversation(data, item.row), legend(), arithmetic(data, item.row, (row) => this.pick(row)));
    }
    if (byHand && getComputedStyle(this.list.box).position === "static") this.detail.scrollIntoView({ behavior: "smooth" });
  }

  // Show another trajectory of the same prompt, also one that the filters leave out.
  pick(row) {
    const index = this.list.items.findIndex((item) => item.row === row);
    if (index >= 0) this.list.select(index, false);
    else this.showDetail({ rows: [row], row }, false);
  }
}

function fill(select, options) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
}

async function start() {
  const status = document.getElementById("browser-status");
  if (typeof DecompressionStream === "undefined") {
    status.textContent = "This browser of trajectories needs a web browser of 2023 or newer.";
    return;
  }
  const data = await Data.load();
  if (!data.numRows) {
    status.textContent = "There are no trajectories yet.";
    return;
  }
  status.remove();
  document.getElementById("browser").hidden = false;
  new Browser(data);
}

start();
