// A trajectory as a conversation, its sampled tokens coloured by their probability.

const HEATS = [0.9, 0.5, 0.2, 0.05, 0.01]; // below the first of them: one step warmer for each
const END_OF_TURN = "∎";

function heat(probability) {
  return HEATS.filter((bound) => probability < bound).length;
}

function legend() {
  const names = ["≥ 90 %", "< 90 %", "< 50 %", "< 20 %", "< 5 %", "< 1 %"];
  const steps = names.map((name, step) => make("span", step ? `h${step}` : "", name));
  return make("p", "legend", "Probability of a token under the policy that wrote it:", ...steps);
}

function bubble(role, body, name = "") {
  return make("div", `message ${role === "assistant" ? "assistant" : ""}`, make("p", "who", name || role), body);
}

function tokenText(data, turn) {
  const text = data.texts[data.turns.text[turn]];
  const body = make("div", "body");
  const count = data.turns.tokens[turn];
  if (count < 0) {
    body.append(text);
    return body;
  }
  const start = data.tokenStart[turn];
  let covered = 0;
  for (let index = start; index < start + count; index++) covered += data.lengths[index];
  let place = text.length - covered;
  if (place > 0) body.append(make("span", "prefill", text.slice(0, place)));
  for (let index = start; index < start + count; index++) {
    const end = place + data.lengths[index];
    const isEnd = end === place && index === start + count - 1;
    if (end > place || isEnd) body.append(token(data, index, isEnd ? END_OF_TURN : text.slice(place, end)));
    place = end;
  }
  return body;
}

function token(data, index, text) {
  const nats = data.levels[index] / data.levelsPerNat;
  const probability = Math.exp(-nats);
  const step = heat(probability);
  const element = make("span", step ? `token h${step}` : "token", text);
  const known = data.levels[index] === 255 ? "under 0.0003 %" : `${short(100 * probability)} %`;
  element.title = `${text === END_OF_TURN ? "end of turn, " : ""}probability ${known}, log-probability ${short(-nats)}`;
  return element;
}

function verdict(data, turn) {
  const { reward, ok, stop, answers } = data.turns;
  const said = answers[turn].map((answer) => data.texts[answer]).join(" ‖ ");
  const solved = reward[turn] > 0;
  const mark = make("b", solved ? "ok" : "no", solved ? "✓ correct" : ok[turn] ? "✗ wrong" : "✗ no answer");
  const facts = [said ? ` · answer ${abridged(said, 200)}` : "", ` · reward ${short(reward[turn])}`];
  const reason = data.texts[stop[turn]];
  if (reason !== "stop") facts.push(` · cut off: ${reason}`);
  return make("p", "verdict", mark, facts.join(""));
}

function conversation(data, row) {
  const parts = data.chat(data.rows.opening[row]).map(([role, text]) => bubble(role, make("div", "body", text)));
  data.turnsOf(row).forEach((turn, index) => {
    parts.push(bubble("assistant", tokenText(data, turn), `assistant, turn ${index + 1}`), verdict(data, turn));
    for (const [role, text] of data.chat(data.turns.after[turn])) parts.push(bubble(role, make("div", "body", text)));
  });
  return make("div", "", ...parts);
}

// In a few words: when it was solved, or that it was not.
function outcome(data, row) {
  if (row === null) return make("span", "", "not there");
  const first = data.rows.first[row];
  const count = data.turnsOf(row).length;
  return first ? make("span", "ok", `✓ turn ${first}`) : make("span", "no", `✗ ${count} turn${count === 1 ? "" : "s"}`);
}
