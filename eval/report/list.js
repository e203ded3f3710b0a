// The list: a page of samples at a time, made when it is asked for; and the keys.

let state = readState("");
let found = [];
const search = element("input", { type: "search", id: "query", placeholder: "search id, question, answer, reply", autocomplete: "off", spellcheck: "false" });
const controls = element("div", { class: "controls" });

function change(what) {
  const keepsPage = "page" in what || "sample" in what;
  state = { ...state, ...(keepsPage ? {} : { page: 0, sample: null }), ...what };
  state.against = otherRun(state);
  history.replaceState(null, "", writeState(state));
  render();
}

function render() {
  const inView = candidates(state);
  found = inView.filter((row) => holdsAll(row, state));
  const lastPage = Math.max(0, Math.ceil(found.length / state.size) - 1);
  if (state.sample !== null) {
    const place = found.findIndex((row) => row.id === state.sample);
    if (place >= 0) state.page = Math.floor(place / state.size);
  }
  state.page = Math.min(state.page, lastPage);
  const focused = document.activeElement && document.activeElement.id;
  controls.replaceChildren(...filterControls(state, inView, change));
  if (focused && byId(focused) && controls.contains(byId(focused))) byId(focused).focus();
  if (search.value !== state.query) search.value = state.query;
  renderList(lastPage);
}

function renderList(lastPage) {
  const first = state.page * state.size;
  const shown = found.slice(first, first + state.size);
  byId("found").textContent = found.length
    ? `${first + 1} to ${first + shown.length} of ${found.length} samples`
    : "No sample is like this. Take a filter away, or show all.";
  byId("list").replaceChildren(...shown.map((row, place) => sampleItem(row, state, first + place + 1, toggle)));
  byId("pager").replaceChildren(
    element("button", { type: "button", id: "previous", disabled: state.page === 0, click: () => turn(-1) }, "\u2190 previous"),
    element("span", {}, `page ${state.page + 1} of ${lastPage + 1}`),
    element("button", { type: "button", id: "next", disabled: state.page === lastPage, click: () => turn(1) }, "next \u2192"),
    choice("a page", pageSizes.map((size) => [size, size]), state.size, (size) => change({ size: Number(size) })),
    element("details", { class: "ids" }, element("summary", {}, "ids of these"),
      element("textarea", { readonly: true, rows: "3", "aria-label": "ids, for --samples", focus: (event) => { event.target.value = found.map((row) => row.id).join(","); event.target.select(); } })),
    element("p", { class: "about keys" }, "Keys: ", ["/ search", "j k next, previous", "Enter open, close", "n p turn the page"].join(" \u00b7 ")));
  const open = shown.find((row) => row.id === state.sample);
  if (open) expand(open);
}

function turn(step) {
  const page = state.page + step;
  if (page < 0 || page * state.size >= found.length) return;
  change({ page, sample: null });
  focusSample(0);
  reveal(byId("found"));
}

function summaries() {
  return [...document.querySelectorAll("#list .summary")];
}

function focusSample(place) {
  const all = summaries();
  if (all[place]) {
    all[place].focus({ preventScroll: true });
    reveal(all[place]);
  }
}

/** Scroll as little as it takes to see an element, which the filters may lie above. */
function reveal(seen) {
  seen.scrollIntoView({ block: "nearest" });
  const hidden = byId("filters").getBoundingClientRect().bottom - seen.getBoundingClientRect().top;
  if (hidden > 0) scrollBy(0, -hidden - 8);
}

function toggle(row) {
  const item = byId("sample-" + row.place);
  const isOpen = item.querySelector(".detail") !== null;
  if (isOpen) {
    item.querySelector(".detail").remove();
    item.querySelector(".summary").setAttribute("aria-expanded", "false");
  } else {
    expand(row);
  }
  state.sample = isOpen ? null : row.id;
  history.replaceState(null, "", writeState(state));
}

function expand(row) {
  const item = byId("sample-" + row.place);
  item.append(sampleDetail(row, state));
  item.querySelector(".summary").setAttribute("aria-expanded", "true");
}

/** Where the keys j and k lead from: the sample that has the focus, or holds what has it. */
function move(step) {
  const all = summaries();
  const item = document.activeElement && document.activeElement.closest("li.sample");
  const place = item ? all.indexOf(item.querySelector(".summary")) : -1;
  focusSample(place < 0 ? (step > 0 ? 0 : all.length - 1) : place + step);
}

function close() {
  const item = document.activeElement && document.activeElement.closest("li.sample");
  if (!item || !item.querySelector(".detail")) return;
  item.querySelector(".summary").focus();
  toggle(rows[Number(item.id.replace("sample-", ""))]);
}

const keys = { j: () => move(1), k: () => move(-1), n: () => turn(1), p: () => turn(-1), "/": () => search.focus(), Escape: close };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const isTyping = event.target.closest("input, select, textarea");
  if (isTyping && event.key === "Escape") event.target.blur();
  if (isTyping || !Object.hasOwn(keys, event.key)) return;
  event.preventDefault();
  keys[event.key]();
});

let waiting = null;
search.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => change({ query: search.value }), 150);
});

window.addEventListener("hashchange", () => {
  if (byId(location.hash.slice(1))) return;
  state = readState(location.hash);
  render();
  byId("samples").scrollIntoView();
  byId("samples-title").focus({ preventScroll: true });
});

byId("filters").append(element("label", { class: "search" }, element("span", {}, "search"), search), controls);
const isLinkedTo = location.hash.length > 1 && !byId(location.hash.slice(1));
if (isLinkedTo) state = readState(location.hash);
render();
if (isLinkedTo) byId("samples").scrollIntoView();
