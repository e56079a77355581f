// Making elements. Strings always become text, never markup: whatever the server sends cannot be more than shown.

export const byId = (id) => document.getElementById(id);

/** An element with attributes and children; `onclick` is a listener, null and false children are left out. */
export function element(tag, { onclick, ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (onclick) made.addEventListener("click", onclick);
  made.append(...children.filter((child) => child !== null && child !== false));
  return made;
}

export function button(words, attributes, ...before) {
  return element("button", { type: "button", ...attributes }, ...before, words);
}

/** A picture of index.html; the words beside it say what it means. */
export function icon(name) {
  const SVG = "http://www.w3.org/2000/svg";
  const made = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  made.setAttribute("class", "icon");
  made.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#icon-${name}`);
  made.append(use);
  return made;
}

/** A number to call. Only the fixed numbers of this page are ever passed here. */
export function call(number, words, attributes = {}) {
  return element("a", { href: `tel:${number}`, ...attributes }, words);
}

/** Told to screen readers, seen by nobody. */
export function announce(words) {
  byId("status").textContent = words;
}
