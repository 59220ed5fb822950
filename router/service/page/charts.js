// Small charts: bars of shares, with what is unsure and with the population for comparison.

import { html, percent, svg } from "./dom.js";

/** Chance of an LLM if its logit were `shift` higher and the others stayed. */
export function shifted(chance, shift) {
  const odds = (chance / (1 - Math.min(chance, 1 - 1e-9))) * Math.exp(shift);
  return odds / (1 + odds);
}

const at = (share) => `${(100 * Math.max(0, Math.min(1, share))).toFixed(2)}%`;

/**
 * A list of labelled bars.
 *
 * @param rows {label, share, text, title, from, to, mark, was, strong}: the bar's share of the width, its text;
 *   the range that is believed; marks at the population's share and at the share before; a node may be a label.
 */
export function bars(rows, attributes = {}) {
  return html("ul", { ...attributes, class: `bars ${attributes.class ?? ""}` }, rows.map(bar));
}

function bar({ label, share, text, title, from, to, mark, was, strong }) {
  const drawn = svg("svg", { class: "bar", "aria-hidden": "true" },
    title ? svg("title", {}, title) : null,
    svg("rect", { class: "track", width: "100%", height: "100%", rx: 3 }),
    svg("rect", { class: "share", width: at(share), height: "100%", rx: 3 }),
    upright("was", was, "0%", "100%"),
    from === undefined ? null : svg("line", { class: "range", x1: at(from), x2: at(to), y1: "50%", y2: "50%" }),
    upright("mark", mark, "-15%", "115%"));
  return html("li", { class: strong ? "strong" : null },
    html("span", { class: "label", title: typeof label === "string" ? label : null }, label),
    drawn,
    html("span", { class: "value" }, text));
}

function upright(kind, share, y1, y2) {
  return share === undefined ? null : svg("line", { class: kind, x1: at(share), x2: at(share), y1, y2 });
}

/** Bars of LLMs out of preferences: chance, one standard deviation, the population's. */
export function preferenceBars(llms, before) {
  return bars(llms.map(({ llm, chance, population_chance: population, sd }, place) => {
    const [from, to] = [shifted(chance, -sd), shifted(chance, sd)];
    const title = `${llm}: ${percent(chance)}, one standard deviation ${percent(from)} to ${percent(to)}; ` +
      `population ${percent(population)}`;
    const was = before?.find((entry) => entry.llm === llm)?.chance;
    const text = both(chance, population);
    return { label: llm, share: chance, text, title, from, to, mark: population, was, strong: place === 0 };
  }));
}

/** A share of the user beside that of the population, as text. */
export function both(share, population, say = percent) {
  const spoken = html("span", { class: "hidden" }, ", population ");
  return [say(share), html("span", { class: "population" }, spoken, say(population))];
}
