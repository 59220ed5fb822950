// What is believed of a user, in words and small charts.

import { bars, both, preferenceBars, shifted } from "./charts.js";
import { counted, html, listed, number, percent } from "./dom.js";
import { neighborhood } from "./neighborhood.js";

const TASKS_SHOWN = 6;
const LLMS_SHOWN = 8;

/** Where the link of a user leads: to its profile on this page. */
export const look = (user) => `#${encodeURIComponent(user)}`;

/** A profile; `before` is that of the same user before its last feedback, or null. */
export function shownProfile(profile, before) {
  const { user, evidence, overall } = profile;
  const was = before?.overall.llms;
  return [
    html("h2", {}, "What is believed of ", html("span", { class: "name" }, user)),
    html("p", { class: "lead" }, inWords(overall.llms)),
    was ? html("p", { class: "change", role: "status" }, change(overall.llms, was)) : null,
    html("p", { class: "evidence" }, restsOn(evidence)),
    attributes(evidence.attributes),
    html("div", { class: "columns" },
      part("Models, over all tasks", preferenceBars(overall.llms, was), barsNote(was)),
      part("Tastes", tastes(profile.tastes))),
    byTask(profile.by_task),
    profile.features.length ? part("What answers are worth to this user", features(profile.features)) : null,
    surroundings(profile),
  ];
}

function inWords(llms) {
  const [first, second] = llms;
  const [population] = [...llms].sort((one, two) => two.population_chance - one.population_chance);
  const [low, high] = [shifted(first.chance, -first.sd), shifted(first.chance, first.sd)];
  const compared = population.llm === first.llm
    ? `, as would an unknown user (${percent(first.population_chance)})`
    : [", where an unknown user would most likely choose ", html("strong", {}, population.llm),
      ` (${percent(population.population_chance)})`];
  return ["Would most likely choose ", html("strong", {}, first.llm), ` (${percent(first.chance)})`, compared,
    `. One standard deviation of what is believed: ${percent(low)} to ${percent(high)}.`,
    second ? [" Next comes ", html("strong", {}, second.llm), ` (${percent(second.chance)}).`] : null];
}

/** What the last feedback did, told by the model that it moved most. */
export function change(llms, was) {
  const before = new Map(was.map(({ llm, chance }) => [llm, chance]));
  const moved = llms.map(({ llm, chance }) => ({ llm, chance, from: before.get(llm) ?? chance }));
  const far = ({ chance, from }) => Math.abs(chance - from);
  const most = moved.reduce((best, entry) => (far(entry) > far(best) ? entry : best));
  const [from, to] = [percent(most.from), percent(most.chance)];
  if (from === to) return "The last feedback changed nothing of this; only choices do.";
  return ["Since the last feedback: ", html("strong", {}, most.llm), ` ${from} → ${to}.`];
}

function restsOn({ source, n_feedback: told, n_items: items, in_graph: inGraph }) {
  const choices = counted(told, "choice");
  const untrained = "The release was not trained with choices of this user:";
  const words = {
    "trained": "Rests on the choices that the release was trained with.",
    "trained+feedback": `Rests on the choices that the release was trained with, and on ${choices} since.`,
    "feedback": `${untrained} rests on ${choices} told since.`,
    "interactions": `${untrained} rests on its items and what is near to them.`,
    "interactions+feedback": `${untrained} rests on its items, what is near to them, and ${choices} told since.`,
    "attributes": "Rests on the attributes of the user alone.",
    "population": "Nothing is known of this user: what is believed is the population's.",
  }[source];
  const graph = inGraph ? `has ${counted(items, "item")} of this user` : "does not have this user";
  return `${words} The graph ${graph}.`;
}

function attributes(values) {
  const entries = Object.entries(values);
  if (!entries.length) return null;
  const shown = (value) => (typeof value === "number" ? number(value) : String(value));
  const pairs = entries.map(([name, value]) =>
    html("div", {}, html("dt", {}, name), html("dd", {}, shown(value))));
  return html("dl", { class: "chips", "aria-label": "Attributes" }, pairs);
}

function part(title, ...content) {
  return html("section", { class: "part" }, html("h3", {}, title), content);
}

const barsNote = (was) => html("p", { class: "note" },
  "Bar: chance of being chosen among all. Thin line: one standard deviation. ",
  "Tick and second number: the population.",
  was ? " Dotted: before the last feedback." : null);

function byTask(tasks) {
  if (!tasks.length) return null;
  const shown = tasks.map(({ task, llms }) => html("div", { class: "task" },
    html("h4", {}, task), preferenceBars(llms.slice(0, LLMS_SHOWN))));
  const rest = shown.slice(TASKS_SHOWN);
  return html("section", { class: "part" }, html("h3", {}, "Models, by task"),
    html("div", { class: "grid" }, shown.slice(0, TASKS_SHOWN)),
    rest.length ? more(counted(rest.length, "more task"), html("div", { class: "grid" }, rest)) : null);
}

const more = (summary, content) => html("details", {}, html("summary", {}, summary), content);

function tastes(found) {
  if (!found.length) return html("p", { class: "note" }, "The release has no tastes.");
  const rows = found.map(({ name, share, population_share: population }, place) => ({
    label: name, share, mark: population, strong: place === 0, text: both(share, population),
  }));
  const described = found.map(({ name, llms }) => html("li", {}, html("b", {}, name), ": ",
    listed(llms.slice(0, 3).map(([llm, chance]) => `${llm} ${percent(chance)}`))));
  const note = "Bar: probability that the user has the taste. Tick and second number: share of all users. " +
    "A user in the middle of a taste would choose:";
  return [bars(rows), html("p", { class: "note" }, note), html("ul", { class: "described" }, described)];
}

function features(found) {
  const most = Math.max(...found.flatMap((entry) => [entry.weight, entry.population_weight]).map(Math.abs));
  const place = (weight) => 0.5 + weight / (2 * most || 1);
  return [bars(found.map(({ feature, weight, population_weight: population }) => ({
    label: feature, from: place(0), to: place(weight), share: 0, mark: place(population),
    text: both(weight, population, number),
  })), { class: "weights" }),
  html("p", { class: "note" }, "Logits per standard deviation of the feature, from the middle: wanted to the ",
    "right, unwanted to the left. Tick and second number: the population.")];
}

function surroundings({ items, near_users: users, near_items: nearItems, neighborhood: picture }) {
  if (!picture.nodes.length) return null;
  const link = (user) => html("a", { href: look(user) }, user);
  return [
    part("Neighbourhood", neighborhood(picture, look)),
    html("div", { class: "columns three" },
      part("Its items, by weight", scored(items)),
      part("Users near to it", scored(users, link)),
      part("Items near to it", scored(nearItems)),
    ),
    html("p", { class: "note" },
      "Near: by personalised PageRank over users and items; scores compare within one list."),
  ];
}

function scored(entries, label = (key) => key) {
  if (!entries.length) return html("p", { class: "note" }, "none");
  const most = Math.max(...entries.map(({ score }) => score));
  const row = ({ key, score }) => ({ label: label(key), share: score / most, text: number(score) });
  return bars(entries.map(row), { class: "scored" });
}
