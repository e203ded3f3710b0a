// One sample: the line in the list, and everything about it below.

/** Show picture number `place` in `image`, as soon as the page is read to its end: the pictures stand there. */
function showPicture(image, place) {
  const show = () => { image.src = "data:image/webp;base64," + byId("picture-" + place).textContent; };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", show, { once: true });
  else show();
}

function pictureOf(place, attributes) {
  const { name, size, problem } = about.pictures[place];
  if (problem) return element("span", { class: "no-picture" }, attributes.thumb ? "no picture" : problem);
  const image = element("img", { alt: attributes.thumb ? "" : "picture " + name, width: size && size[1], height: size && size[0], decoding: "async" });
  showPicture(image, place);
  return image;
}

function verdictChip(verdict) {
  const [word, manner] = verdictWord(verdict);
  return element("span", { class: "verdict " + manner }, word);
}

/** What is said of a sample's outcome in one line. */
function outcomeLine(row, run, state) {
  const outcome = row.runs[run];
  if (!outcome) return element("span", { class: "outcome" }, element("span", { class: "verdict none" }, "not in this run"));
  if (outcome.error !== undefined) {
    return element("span", { class: "outcome" }, element("span", { class: "verdict error" }, "! error"), " ", foreign(short(outcome.error), { class: "reply" }));
  }
  return element("span", { class: "outcome" },
    verdictChip(verdictOf(row, run, state.scorer)), " ",
    foreign(short(outcome.reply), { class: "reply" }),
    outcome.finish === "length" && element("span", { class: "verdict cut" }, "cut off"),
    differ(row, run) && element("span", { class: "verdict differ" }, "scorers disagree"));
}

/** The end of a long reply, for there the answer stands. */
function short(text) {
  const line = text.replace(/\s+/g, " ").trim();
  if (!line) return "(empty)";
  return line.length <= 140 ? line : "\u2026 " + line.slice(-138);
}

function goldOf(row) {
  const texts = row.targets.map((target) => {
    const option = row.options[target.charCodeAt(0) - 65];
    return target.length === 1 && option !== undefined ? target + ". " + option : target;
  });
  return [...new Set(texts)].join(" | ");
}

function sampleItem(row, state, number, toggle) {
  const several = about.runs.length > 1;
  const runs = several ? about.runs.map((_, run) => run).filter((run) => run === state.run || (run === state.against && row.runs[run])) : [state.run];
  return element("li", { class: "sample", id: "sample-" + row.place, value: number },
    element("button", { type: "button", class: "summary", "aria-expanded": "false", click: () => toggle(row) },
      element("span", { class: "thumb" }, row.pictures.length ? pictureOf(row.pictures[0], { thumb: true }) : null),
      element("span", { class: "body" },
        element("span", { class: "question" }, foreign(row.question || "(no question)")),
        element("span", { class: "gold" }, "expected ", foreign(goldOf(row) || "(nothing)")),
        runs.map((run) => element("span", { class: "line run" + (run % 6) }, several && element("i", { class: "key", title: about.runs[run] }), outcomeLine(row, run, state))))));
}

function sampleDetail(row, state) {
  const present = about.runs.map((_, run) => run).filter((run) => row.runs[run]);
  return element("div", { class: "detail" },
    element("div", { class: "pictures" }, row.pictures.map((place) =>
      element("figure", {}, pictureOf(place, {}), element("figcaption", {}, foreign(about.pictures[place].name), sizeOf(place))))),
    element("div", { class: "texts" },
      element("p", { class: "question" }, foreign(row.question)),
      row.options.length > 0 && element("ol", { class: "options", type: "A" }, row.options.map((option, place) =>
        element("li", { class: row.targets.includes(String.fromCharCode(65 + place)) ? "gold" : null }, foreign(option)))),
      element("p", {}, element("span", { class: "about" }, "expected "), foreign(goldOf(row), { class: "gold" })),
      present.map((run) => replyOf(row, run, state)),
      verdictTable(row, present),
      promptsOf(row, present),
      fieldsOf(row)));
}

function sizeOf(place) {
  const { size } = about.pictures[place];
  return size ? ` ${size[1]} \u00d7 ${size[0]} pixels` : "";
}

function replyOf(row, run, state) {
  const outcome = row.runs[run];
  const facts = outcome.error !== undefined ? ["error"] : [
    outcome.finish === "length" ? "cut off at the limit of tokens" : outcome.finish,
    outcome.confidence === null ? null : `confidence ${(100 * outcome.confidence).toFixed(1)} %`,
    outcome.tokens === null ? null : `${outcome.tokens} tokens`,
    outcome.likelihood && "ln likelihood of the options " + outcome.likelihood.map((value) => value ?? "\u2013").join(" / "),
  ];
  const verdict = verdictOf(row, run, state.scorer);
  return element("section", { class: "answer run" + (run % 6) },
    element("h4", {}, about.runs.length > 1 && element("i", { class: "key" }), about.runs.length > 1 ? foreign(about.runs[run]) : "Reply", " ",
      element("span", { class: "about" }, facts.filter(Boolean).join(", "))),
    outcome.error !== undefined
      ? element("pre", { class: "error", dir: "auto" }, outcome.error)
      : element("pre", { class: "reply", dir: "auto" }, withMark(outcome.reply, verdict && verdict.extracted)));
}

function verdictTable(row, present) {
  const answered = present.filter((run) => row.runs[run].error === undefined);
  const names = about.scorers[row.task].filter((name) => answered.some((run) => verdictOf(row, run, name)));
  if (!names.length) return null;
  const several = answered.length > 1;
  const header = answered.map((run) => [
    element("th", { scope: "col" }, several ? foreign(about.runs[run]) : "verdict"), element("th", { scope: "col" }, "extracted")]);
  return element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Verdicts" }, element("table", { class: "verdicts" },
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "scorer"), header)),
    element("tbody", {}, names.map((name) => element("tr", {}, element("th", { scope: "row" }, name), answered.map((run) => {
      const verdict = verdictOf(row, run, name);
      const span = verdict && verdict.extracted !== null ? element("code", { dir: "auto" }, verdict.extracted) : "\u2013";
      return [element("td", {}, verdictChip(verdict)), element("td", {}, span)];
    }))))));
}

function promptsOf(row, present) {
  const prompts = new Map();
  for (const run of present) {
    const text = promptOf(row.runs[run]);
    prompts.set(text, [...(prompts.get(text) || []), about.runs[run]]);
  }
  return [...prompts].map(([text, names]) => element("details", {},
    element("summary", {}, "Prompt", prompts.size > 1 ? " of " + names.join(", ") : ""), element("pre", { dir: "auto" }, text)));
}

function fieldsOf(row) {
  const pairs = [["id", row.id], ["task", row.task], ...Object.entries(row.fields)];
  for (const [name, facet] of Object.entries(about.facets)) {
    if (facet.of[row.place] >= 0 && !Object.hasOwn(row.fields, name)) pairs.push([name, facet.values[facet.of[row.place]]]);
  }
  return element("dl", { class: "fields" }, pairs.map(([name, value]) => element("div", {}, element("dt", {}, foreign(name)), element("dd", {}, foreign(value)))));
}
