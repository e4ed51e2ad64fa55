// How a trajectory got its return and its weight, in numbers one can follow.

// Like make(), with `^…^` set as an exponent.
function formula(text, isResult = false) {
  const parts = text.split("^").map((part, index) => (index % 2 ? make("sup", "", part) : part));
  return isResult ? make("li", "", make("b", "", ...parts)) : make("li", "", ...parts);
}

function signed(value) {
  return value < 0 ? `− ${short(-value)}` : `+ ${short(value)}`;
}

function returnSteps(data, row) {
  const { gamma, repetition_penalty: lambda } = data.weighting;
  const { disc, fmt, rep, ret, total, distinct } = data.rows;
  const rewards = data.turnsOf(row).map((turn) => data.turns.reward[turn]);
  const terms = rewards.flatMap((reward, index) => (reward ? [`${short(gamma)}^${index}^·${short(reward)}`] : []));
  const recorded = rewards.reduce((sum, reward, index) => sum + gamma ** index * reward, 0);
  // Another grader, or the first turn alone, may have counted: then only the results are known here.
  const asRecorded = Math.abs(recorded - disc[row]) < 1e-4;
  const repeated = total[row] ? 1 - distinct[row] / total[row] : 0;
  const first = asRecorded ? terms.join(" + ") || "0" : short(disc[row]);
  const last = asRecorded && Math.abs(lambda * repeated - rep[row]) < 1e-4 && total[row]
    ? `${short(lambda)}·(1 − ${distinct[row]}/${total[row]})` : short(rep[row]);
  return make("ol", "",
    formula("R = Σ γ^k−1^·rₖ + format penalty − λ·(1 − distinct/total answers)"),
    formula(`= ${first} ${signed(fmt[row])} − ${last}`),
    formula(`= ${short(disc[row])} ${signed(fmt[row])} − ${short(rep[row])}`),
    formula(`= ${short(ret[row], 4)}`, true));
}

function weightSteps(data, row) {
  const { method, beta: runBeta } = data.weighting;
  const weight = data.rows.w[row];
  const beta = data.rows.beta[row] ?? runBeta;
  const group = data.group(row).filter((each) => data.rows.ret[each] !== null);
  const isDrift = method === "drift" || method === "single_turn";
  if (!isDrift) return make("ol", "", formula(`w by the weighting “${method}”`), formula(`= ${short(weight, 4)}`, true));
  if (beta === null) return make("ol", "", formula("w = exp(R/β) / mean of exp(R/β) over the prompt’s trajectories"),
    formula("all of them have the same return"), formula(`= ${short(weight, 4)}`, true));
  const best = Math.max(...group.map((each) => data.rows.ret[each]));
  const scaled = group.map((each) => Math.exp((data.rows.ret[each] - best) / beta));
  const mean = scaled.reduce((sum, each) => sum + each, 0) / group.length;
  const own = Math.exp((data.rows.ret[row] - best) / beta);
  const steps = [
    formula(`w = exp(R/β) / mean of exp(R/β) over the prompt’s ${group.length} trajectories, β = ${short(beta)}`),
    formula(`= exp((${short(data.rows.ret[row], 4)} − ${short(best, 4)})/${short(beta)}) / mean of exp((R − ${short(best, 4)})/${short(beta)})`),
    formula(`= ${short(own, 4)} / ${short(mean, 4)}`),
    formula(`= ${short(own / mean, 4)}`, true),
  ];
  const tolerance = 1e-3 * Math.max(Math.abs(weight), 1e-3);
  if (Math.abs(own / mean - weight) > tolerance) {
    steps.push(make("li", "", "stored: ", make("b", "", short(weight, 4)),
      " — after the limits of the weighting, or with trajectories of this prompt that are not in this page"));
  }
  return make("ol", "", ...steps);
}

function groupBars(data, row, onPick) {
  const group = data.group(row);
  const highest = Math.max(...group.map((each) => Math.abs(data.rows.w[each] ?? 0)), 1e-9);
  const bars = group.map((each) => {
    const bar = make("button", data.rows.first[each] ? "solved" : "");
    const height = make("i", "");
    height.style.height = `${(100 * Math.abs(data.rows.w[each] ?? 0)) / highest}%`;
    bar.append(height);
    bar.type = "button";
    bar.title = `#${data.rows.index[each]}: R ${short(data.rows.ret[each])}, w ${short(data.rows.w[each])}`;
    bar.setAttribute("aria-label", bar.title);
    if (each === row) bar.setAttribute("aria-current", "true");
    bar.addEventListener("click", () => onPick(each));
    return bar;
  });
  return make("div", "group", ...bars);
}

function arithmetic(data, row, onPick) {
  if (!data.weighting || data.rows.ret[row] === null) {
    return make("div", "sum", make("h4", "", "Return and weight"), make("p", "meta", "Not weighed, so it carries no weight."));
  }
  const { method, verdicts } = data.weighting;
  const rule = verdicts ? `By the verdicts “${verdicts}”, not those recorded above.`
    : method === "single_turn" ? "Only the first turn counts." : "";
  return make("div", "sum",
    make("h4", "", "Return"), rule ? make("p", "meta", rule) : null,
    returnSteps(data, row),
    make("h4", "", "Importance weight"), weightSteps(data, row),
    make("h4", "", "All trajectories of this prompt"), groupBars(data, row, onPick),
    make("p", "meta", "Height: weight. Coloured: solved. Choose one to see it."));
}
