// A user in the middle, users near to it on the left, its items and those near to it on the right.
//
// Each side has rows of equal distance, bent around the middle, and labels point outwards: none overlap.

import { html, number, svg } from "./dom.js";

const ROW = 27;
const FONT_PX = 13;
const RADIUS = 7;

/** The picture, drawn anew whenever the width changes; `look` is where the link of a user leads. */
export function neighborhood({ nodes, edges }, look) {
  const drawing = html("div", { class: "drawing" });
  let drawn = 0;
  new ResizeObserver(() => {
    const width = Math.min(860, Math.floor(drawing.clientWidth));
    if (width === drawn || width < 200) return;
    drawn = width;
    drawing.replaceChildren(draw(nodes, edges, width, look));
  }).observe(drawing);
  return html("figure", {}, drawing, legend(nodes));
}

function legend(nodes) {
  const own = nodes.find(({ kind }) => kind === "self").label;
  const entry = (kind, text) => html("li", {},
    svg("svg", { class: "dot", viewBox: "0 0 12 12", "aria-hidden": "true" },
      svg("circle", { class: kind, cx: 6, cy: 6, r: 4.5 })),
    text);
  const note = "Solid lines: who has which item, wider for more weight. Dashed: personalised PageRank, wider " +
    "for a higher score. Point at a node to see its lines; follow a user to its profile.";
  return html("figcaption", {},
    html("ul", { class: "legend" },
      entry("user", "users near to it"),
      entry("self", own),
      entry("item", "its items"),
      entry("item-near", "items near to it")),
    html("p", { class: "note" }, note));
}

function draw(nodes, edges, width, look) {
  const { places, height, radius } = layout(nodes, edges, width);
  const self = nodes.find(({ kind }) => kind === "self");
  const lines = [
    ...interactions(edges.filter(({ source }) => source !== self.id), edges, places, "others"),
    ...nearness(self, nodes, places),
    ...interactions(edges.filter(({ source }) => source === self.id), edges, places, "own"),
  ];
  const label = `Neighbourhood of ${self.label}; the lists of items and users say the same`;
  const picture = svg("svg",
    { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label },
    svg("g", { class: "lines" }, lines.map(({ drawn }) => drawn)));
  for (const node of nodes) {
    const place = places.get(node.id);
    const outside = (place.side < 0 ? place.x : width - place.x) - 2 * RADIUS;
    const room = node === self ? 2 * radius - 4 * RADIUS : outside;
    picture.append(mark(node, place, room, look, (on) => light(picture, lines, node.id, on)));
  }
  return picture;
}

function interactions(some, all, places, kind) {
  const heaviest = Math.max(...all.map(({ weight }) => weight));
  return some.map(({ source, target, weight }) =>
    line(places, source, target, kind, weight / heaviest, `weight ${number(weight)}`));
}

/** Lines to whom and what is near: those of users, and of items, are as wide as their scores compare. */
function nearness(self, nodes, places) {
  return ["user", "item"].flatMap((kind) => {
    const near = nodes.filter((node) => node.kind === kind && !places.get(node.id).own);
    const best = Math.max(...near.map(({ score }) => score));
    return near.map(({ id, score }) =>
      line(places, self.id, id, "near", score / best, `score ${number(score)}`));
  });
}

/** Where each node is, `own` for items that the user has; users are ordered by the items that they share. */
export function layout(nodes, edges, width) {
  const self = nodes.find(({ kind }) => kind === "self");
  const owned = new Set(edges.filter(({ source }) => source === self.id).map(({ target }) => target));
  const items = nodes.filter(({ kind }) => kind === "item")
    .sort((one, two) => Number(owned.has(two.id)) - Number(owned.has(one.id)));
  const rank = new Map(items.map(({ id }, place) => [id, place]));
  const middle = ({ id }) => {
    const ranks = edges.filter(({ source }) => source === id).map(({ target }) => rank.get(target));
    return ranks.reduce((sum, place) => sum + place, 0) / Math.max(1, ranks.length);
  };
  const users = nodes.filter(({ kind }) => kind === "user").sort((one, two) => middle(one) - middle(two));
  const height = ROW * Math.max(users.length, items.length, 5) + ROW;
  const label = Math.min(170, 0.27 * width);
  const radius = width / 2 - label - 2 * RADIUS;
  const places = new Map([[self.id, { x: width / 2, y: height / 2, label: self.label }]]);
  for (const [side, column] of [[-1, users], [1, items]]) {
    column.forEach((node, place) => {
      const off = ROW * (place - (column.length - 1) / 2);
      const x = width / 2 + side * radius * Math.sqrt(1 - 0.5 * (2 * off / height) ** 2);
      places.set(node.id, { x, y: height / 2 + off, side, label: node.label, own: owned.has(node.id) });
    });
  }
  return { places, height, radius };
}

function line(places, source, target, kind, share, what) {
  const [from, to] = [places.get(source), places.get(target)];
  const bend = 0.55 * (to.x - from.x);
  const d = `M${from.x} ${from.y}C${from.x + bend} ${from.y} ${to.x - bend} ${to.y} ${to.x} ${to.y}`;
  const width = (0.5 + 3.5 * Math.sqrt(share)).toFixed(2);
  const title = svg("title", {}, `${from.label} – ${to.label}: ${what}`);
  return { source, target, drawn: svg("path", { class: kind, d, "stroke-width": width }, title) };
}

function mark({ kind, label, score }, { x, y, side, own }, room, look, lit) {
  const what = kind === "self" ? "" : `: ${own ? "weight" : "score"} ${number(score)}`;
  const shape = kind === "item" && !own ? "item-near" : kind;
  const text = side === undefined
    ? { x, y: y + 28, "text-anchor": "middle" }
    : { x: x + side * (RADIUS + 6), y: y + 4.5, "text-anchor": side < 0 ? "end" : "start" };
  text["font-size"] = FONT_PX;
  const on = () => lit(true);
  const off = () => lit(false);
  return svg(kind === "user" ? "a" : "g",
    {
      class: "node", href: kind === "user" ? look(label) : null,
      onpointerenter: on, onpointerleave: off, onfocus: on, onblur: off,
    },
    svg("title", {}, `${label}${what}`),
    svg("circle", { class: shape, cx: x, cy: y, r: kind === "self" ? 11 : RADIUS }),
    svg("text", text, shortened(label, room)));
}

/** Make the lines of a node stand out, or all alike again. */
function light(picture, lines, id, on) {
  picture.classList.toggle("pointed", on);
  for (const { source, target, drawn } of lines) {
    drawn.classList.toggle("lit", on && (source === id || target === id));
  }
}

/** A label without its middle where it is wider than its room: names often differ at their ends. */
function shortened(text, room) {
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = `${FONT_PX}px ${getComputedStyle(document.body).fontFamily}`;
  const letters = [...text];
  let label = text;
  for (let kept = letters.length - 1; kept > 1 && pen.measureText(label).width > room; kept -= 1) {
    label = [...letters.slice(0, Math.ceil(kept / 2)), "…", ...letters.slice(-Math.floor(kept / 2))].join("");
  }
  return label;
}
