// The samples as they lie in the page, and what is to be said of each.

const about = JSON.parse(byId("about").textContent);
const { rows, lines } = JSON.parse(byId("rows").textContent);
rows.forEach((row, place) => { row.place = place; });

const taskNames = Object.keys(about.scorers);

/** What a scorer says of a sample's answer in a run; null where it says nothing. */
function verdictOf(row, run, scorer) {
  const outcome = row.runs[run];
  if (!outcome || outcome.error !== undefined) return null;
  const name = scorer || about.scorers[row.task][0];
  const verdict = outcome.verdicts[about.scorers[row.task].indexOf(name)];
  if (!verdict) return null;
  const [value, span, reason] = verdict;
  return { value, reason, extracted: span < 0 ? null : outcome.extracted[span] };
}

/** Whether any two scorers, or the two of `pair`, judge an answer differently. */
function differ(row, run, pair) {
  const names = pair || about.scorers[row.task];
  const values = names.map((name) => verdictOf(row, run, name)).filter((verdict) => verdict).map((verdict) => verdict.value);
  return new Set(values).size > 1;
}

/** The points of a sample in a run; an error gets none, a sample that the run does not have is null. */
function points(row, run, scorer) {
  if (!row.runs[run]) return null;
  const verdict = verdictOf(row, run, scorer);
  return verdict ? verdict.value : row.runs[run].error === undefined ? null : 0;
}

function gain(row, state) {
  const [before, after] = [points(row, state.against, state.scorer), points(row, state.run, state.scorer)];
  return before === null || after === null ? 0 : after - before;
}

const shows = {
  right: { label: "right", title: "a full point", holds: (row, state) => (verdictOf(row, state.run, state.scorer) || {}).value === 1 },
  wrong: {
    label: "wrong", title: "less than a full point, unparsed answers among them",
    holds: (row, state) => { const verdict = verdictOf(row, state.run, state.scorer); return verdict !== null && verdict.value < 1; },
  },
  unparsed: {
    label: "unparsed", title: "the scorer found no answer in the reply",
    holds: (row, state) => (verdictOf(row, state.run, state.scorer) || {}).reason === "unparsed",
  },
  cut: {
    label: "cut off", title: "the reply ended at the limit of new tokens",
    holds: (row, state) => row.runs[state.run] !== null && row.runs[state.run].error === undefined && row.runs[state.run].finish === "length",
  },
  differ: { label: "scorers disagree", title: "some two scorers give different points", holds: (row, state) => differ(row, state.run) },
  error: { label: "errors", title: "there is no answer", holds: (row, state) => row.runs[state.run] !== null && row.runs[state.run].error !== undefined },
  changed: { label: "changed", title: "other points than in the other run", compares: true, holds: (row, state) => gain(row, state) !== 0 },
  won: { label: "better now", title: "more points than in the other run", compares: true, holds: (row, state) => gain(row, state) > 0 },
  lost: { label: "worse now", title: "fewer points than in the other run", compares: true, holds: (row, state) => gain(row, state) < 0 },
};

/** In which word and manner a verdict is shown. */
function verdictWord(verdict) {
  if (!verdict) return ["\u2013", "none"];
  if (verdict.reason === "unparsed") return ["? unparsed", "unparsed"];
  if (verdict.reason) return ["! " + verdict.reason, "wrong"];
  if (verdict.value === 1) return ["\u2713 right", "right"];
  if (verdict.value === 0) return ["\u2717 wrong", "wrong"];
  return ["\u25d0 " + verdict.value, "partly"];
}

function promptOf(outcome) {
  return outcome.prompt.map((line) => lines[line]).join("\n");
}

/** What the search looks through, in lower case. */
function searchText(row, run) {
  row.searched = row.searched || [];
  if (row.searched[run] === undefined) {
    const outcome = row.runs[run] || {};
    const texts = [row.id, row.question, ...row.targets, ...row.options, outcome.reply || "", outcome.error || ""];
    row.searched[run] = texts.join("\n").toLowerCase();
  }
  return row.searched[run];
}
