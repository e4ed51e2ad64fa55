// The embedded trajectories: unpacked once, then looked up by row number.
// Everything shown comes from models and data sets: it only ever becomes text, never markup.

async function unpack(name) {
  const text = document.getElementById(`data-${name}`).textContent;
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

class Data {
  constructor(columns, tokens) {
    Object.assign(this, columns);
    this.numRows = this.rows.prompt.length;
    this.lengths = tokens.subarray(0, tokens.length / 2);
    this.levels = tokens.subarray(tokens.length / 2);
    this.tokenStart = new Int32Array(this.turns.tokens.length);
    let start = 0;
    this.turns.tokens.forEach((count, turn) => {
      this.tokenStart[turn] = start;
      start += Math.max(count, 0);
    });
    // What the search looks into, by prompt.
    this.haystack = this.prompts.map((texts) => texts.map((text) => this.texts[text]).join("\n").toLowerCase());
    this.bySource = this.sources.map(() => new Map());
    for (let row = 0; row < this.numRows; row++) {
      const groups = this.bySource[this.rows.source[row]];
      const prompt = this.rows.prompt[row];
      if (!groups.has(prompt)) groups.set(prompt, []);
      groups.get(prompt).push(row);
    }
  }

  static async load() {
    const [columns, tokens] = await Promise.all([unpack("columns"), unpack("tokens")]);
    return new Data(JSON.parse(new TextDecoder().decode(columns)), tokens);
  }

  promptId(row) { return this.texts[this.prompts[this.rows.prompt[row]][0]]; }
  question(row) { return this.texts[this.prompts[this.rows.prompt[row]][1]]; }
  gold(row) { return this.texts[this.prompts[this.rows.prompt[row]][2]]; }
  chat(number) { return this.chats[number].map(([role, text]) => [this.texts[role], this.texts[text]]); }

  // Numbers of a row's turns.
  turnsOf(row) {
    const first = this.rows.firstTurn;
    const end = row + 1 < this.numRows ? first[row + 1] : this.turns.text.length;
    return Array.from({ length: end - first[row] }, (_, index) => first[row] + index);
  }

  // Trajectories of the same prompt and source, this one included.
  group(row) { return this.bySource[this.rows.source[row]].get(this.rows.prompt[row]); }

  // What can be browsed: the rollouts one by one, evaluations as pairs of models on a prompt.
  modes() {
    const benchmarks = [...new Set(this.sources.map((source) => source.benchmark))];
    return benchmarks.filter((name) => benchmarkHasRows(this, name)).map((name) =>
      name === "" ? { name, title: "rollouts (trained on)", paired: false, items: this.rollouts() }
        : { name, title: `${name}: before and after`, paired: true, items: this.pairs(name) });
  }

  rollouts() {
    const items = [];
    this.rows.source.forEach((source, row) => {
      if (this.sources[source].benchmark === "") items.push({ rows: [row], row });
    });
    return items;
  }

  pairs(benchmark) {
    const found = new Map();
    this.rows.source.forEach((number, row) => {
      const source = this.sources[number];
      if (source.benchmark !== benchmark) return;
      const key = `${this.rows.prompt[row]}/${this.rows.index[row]}`;
      if (!found.has(key)) found.set(key, { before: null, after: null, row });
      found.get(key)[source.model === "reference" ? "before" : "after"] = row;
    });
    return [...found.values()].map((pair) => ({ ...pair, rows: [pair.before, pair.after].filter((row) => row !== null) }));
  }
}

function benchmarkHasRows(data, name) {
  return data.rows.source.some((source) => data.sources[source].benchmark === name);
}

// An element with a class and text or children.
function make(tag, name, ...children) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function short(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size < 1e-4 || size >= 1e5 ? value.toExponential(1) : String(Number(value.toPrecision(digits)));
  return text.replace("-", "−");
}

function abridged(text, length) {
  return text.length > length ? `${text.slice(0, length)}…` : text;
}
