"use strict";
// What a page is made of. Texts become text nodes and nothing else: what a model wrote is never HTML.

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

function byId(name) {
  return document.getElementById(name);
}

/** A text that may run from right to left, or try to turn its surroundings round. */
function foreign(text, attributes) {
  return element("bdi", attributes, text);
}

/** A drop-down list of [value, label] pairs. */
function choice(label, pairs, value, onChange) {
  const options = pairs.map(([own, text]) => element("option", { value: own, selected: String(own) === String(value) }, text));
  return element("label", {}, element("span", {}, label), element("select", { id: "choice-" + label, change: (event) => onChange(event.target.value) }, options));
}

/** Return `text` as nodes, with its last occurrence of `part` marked. */
function withMark(text, part) {
  if (!part) return [text];
  let start = text.lastIndexOf(part);
  if (start < 0 && text.toLowerCase().length === text.length) start = text.toLowerCase().lastIndexOf(part.toLowerCase());
  if (start < 0) return [text];
  const end = start + part.length;
  return [text.slice(0, start), element("mark", {}, text.slice(start, end)), text.slice(end)];
}
