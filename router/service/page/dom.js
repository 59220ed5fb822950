// Elements of HTML and SVG, and numbers as people read them. All text becomes text nodes: nothing is parsed.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...present(children));
  return node;
}

const present = (children) => children.flat(Infinity).filter((child) => child !== null && child !== undefined);

/** An HTML element; `on…` attributes are listeners, null children are left out. */
export function html(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** An SVG element, likewise. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** Put children in the place of those that a node has. */
export function replace(node, ...children) {
  node.replaceChildren(...present(children));
}

/** The element of an id. */
export function byId(id) {
  return document.getElementById(id);
}

/** A button that waits for what it does, so that nothing is sent twice. */
export function button(label, action, attributes = {}) {
  const made = html("button", { type: "button", ...attributes }, label);
  made.addEventListener("click", () => busy(made, action));
  return made;
}

/** Do something with a button disabled. */
export async function busy(pressed, action) {
  pressed.disabled = true;
  try {
    return await action();
  } finally {
    pressed.disabled = false;
  }
}

/** 0.7134 as "71 %", small shares with a digit more. */
export function percent(share) {
  const value = 100 * share;
  return `${value > 0 && value < 9.95 ? value.toFixed(1) : value.toFixed(0)}\u00a0%`;
}

/** A number with three digits that count; nothing measured is a dash. */
export function number(value) {
  return value === null ? "–" : String(Number(value.toPrecision(3)));
}

/** Several names as "a, b and c". */
export function listed(names) {
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}

/** A number of things: "1 item", "3 items". */
export function counted(count, thing) {
  return `${count} ${thing}${count === 1 ? "" : "s"}`;
}
