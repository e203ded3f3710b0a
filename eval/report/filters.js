// Which samples are meant. The state is the page's address after "#", so that a view can be linked to and kept.

const pageSizes = [10, 20, 50, 100];
const defaults = { task: "", run: 0, against: 1, scorer: "", show: [], pair: null, query: "", groups: {}, page: 0, size: 20, sample: null };

/** Read the state from an address; what is unknown there is left out. */
function readState(address) {
  const given = new URLSearchParams(address.replace(/^#/, ""));
  const state = { ...defaults, show: [], groups: {} };
  if (taskNames.includes(given.get("task"))) state.task = given.get("task");
  for (const name of ["run", "against"]) {
    const place = Number(given.get(name));
    if (given.has(name) && Number.isInteger(place) && place >= 0 && place < about.runs.length) state[name] = place;
  }
  state.run = runWith(state.task, state.run);
  state.against = otherRun(state);
  const known = scorersOf(state);
  if (known.includes(given.get("scorer"))) state.scorer = given.get("scorer");
  state.show = (given.get("show") || "").split(",").filter((name) => Object.hasOwn(shows, name) && (about.runs.length > 1 || !shows[name].compares));
  const pair = (given.get("pair") || "").split(",");
  if (pair.length === 2 && pair.every((name) => known.includes(name))) state.pair = pair;
  state.query = given.get("query") || "";
  for (const [key, value] of given) {
    const name = key.replace(/^by:/, "");
    if (key !== name && Object.hasOwn(about.facets, name) && about.facets[name].values.includes(value)) state.groups[name] = value;
  }
  if (pageSizes.includes(Number(given.get("size")))) state.size = Number(given.get("size"));
  const page = Number(given.get("page"));
  if (Number.isInteger(page) && page > 0) state.page = page;
  state.sample = given.get("sample");
  return state;
}

/** The inverse of readState; what has its default is left out. */
function writeState(state) {
  const told = new URLSearchParams();
  if (state.task) told.set("task", state.task);
  if (state.run) told.set("run", state.run);
  if (comparesRuns(state) && about.runs.length > 2) told.set("against", state.against);
  if (state.scorer) told.set("scorer", state.scorer);
  if (state.show.length) told.set("show", state.show.join(","));
  if (state.pair) told.set("pair", state.pair.join(","));
  if (state.query) told.set("query", state.query);
  for (const [name, value] of Object.entries(state.groups)) told.set("by:" + name, value);
  if (state.size !== defaults.size) told.set("size", state.size);
  if (state.page) told.set("page", state.page);
  if (state.sample !== null) told.set("sample", state.sample);
  return "#" + told;
}

/** Return `run`, or where it has no sample of the task the first run that has. */
function runWith(task, run) {
  const has = (each) => rows.some((row) => (!task || row.task === task) && row.runs[each] !== null);
  return has(run) ? run : Math.max(0, about.runs.findIndex((_, each) => has(each)));
}

function otherRun(state) {
  if (state.against !== state.run) return state.against;
  return state.run === 0 ? 1 : 0;
}

function comparesRuns(state) {
  return state.show.some((name) => shows[name].compares);
}

function scorersOf(state) {
  return state.task ? about.scorers[state.task] : taskNames.length === 1 ? about.scorers[taskNames[0]] : [];
}

/** The rows of the state, but for what it shows of them: task, run, groups, search. */
function candidates(state) {
  const words = state.query.toLowerCase().trim();
  const groups = Object.entries(state.groups).map(([name, value]) => [about.facets[name].of, about.facets[name].values.indexOf(value)]);
  return rows.filter((row) =>
    (!state.task || row.task === state.task) && row.runs[state.run] !== null &&
    groups.every(([of, value]) => of[row.place] === value) &&
    (!state.pair || differ(row, state.run, state.pair)) &&
    (!words || searchText(row, state.run).includes(words)));
}

function holdsAll(row, state) {
  return state.show.every((name) => shows[name].holds(row, state));
}

/** Names of the facets that part the samples of the chosen task. */
function facetsOf(state) {
  const inTask = state.task ? rows.filter((row) => row.task === state.task) : rows;
  return Object.keys(about.facets).filter((name) => inTask.some((row) => about.facets[name].of[row.place] >= 0));
}

let groupsAreOpen = false;

/** The controls. `change` takes what is to be different in the state. */
function filterControls(state, found, change) {
  const several = about.runs.length > 1;
  const names = Object.keys(shows).filter((name) => several || !shows[name].compares);
  const chips = names.map((name) => {
    const isOn = state.show.includes(name);
    const count = found.filter((row) => shows[name].holds(row, state)).length;
    const show = isOn ? state.show.filter((other) => other !== name) : [...state.show, name];
    return element("button", { type: "button", class: "chip", id: "show-" + name, "aria-pressed": String(isOn), title: shows[name].title,
      click: () => change({ show }) }, shows[name].label + " ", element("b", {}, String(count)));
  });
  if (state.pair) {
    chips.push(element("button", { type: "button", class: "chip", "aria-pressed": "true", title: "remove this filter", click: () => change({ pair: null }) },
      state.pair.join(" \u2260 ") + " \u00d7"));
  }
  const scorers = scorersOf(state);
  const groups = facetsOf(state).map((name) => choice(name, [["", "all"], ...about.facets[name].values.map((value) => [value, value])],
    state.groups[name] || "", (value) => change({ groups: withGroup(state.groups, name, value) })));
  const chosen = Object.keys(state.groups).length;
  const runs = about.runs.map((name, run) => [run, name]);
  return [
    element("div", { class: "choices" },
      taskNames.length > 1 && choice("task", [["", "all"], ...taskNames.map((name) => [name, name])], state.task,
        (task) => change({ task, run: runWith(task, state.run), scorer: "", pair: null, groups: {} })),
      several && choice("run", runs, state.run, (run) => change({ run: Number(run) })),
      several && choice("changed against", runs.filter(([run]) => run !== state.run), state.against, (run) => change({ against: Number(run) })),
      scorers.length > 1 && choice("judged by", scorers.map((name) => [name, name]), state.scorer || scorers[0],
        (scorer) => change({ scorer: scorer === scorers[0] ? "" : scorer })),
      groups.length > 0 && element("details", { id: "groups", open: groupsAreOpen || chosen > 0, toggle: (event) => { groupsAreOpen = event.target.open; } },
        element("summary", {}, "groups", chosen ? ` (${chosen} chosen)` : ""), element("div", { class: "choices" }, groups))),
    element("div", { class: "chips", role: "group", "aria-label": "Show only" }, chips,
      element("button", { type: "button", class: "chip plain", id: "all", click: () => change({ task: "", scorer: "", show: [], pair: null, query: "", groups: {} }) }, "show all")),
  ];
}

function withGroup(groups, name, value) {
  const others = Object.fromEntries(Object.entries(groups).filter(([other]) => other !== name));
  return value ? { ...others, [name]: value } : others;
}
