// A decision, why it came to be, and what a user says of it.

import { bars } from "./charts.js";
import { button, html, number, percent, replace, svg } from "./dom.js";

const SOURCES = {
  "trained": "the training",
  "trained+feedback": "the training and the feedback since",
  "feedback": "feedback alone",
  "interactions": "items and what is near to them",
  "interactions+feedback": "items, what is near to them, and feedback",
  "attributes": "attributes alone",
  "population": "nothing: the population's preferences",
};

/** A decision for a user, or for an unknown one; `tell` sends feedback on it. */
export function shownDecision(answer, user, tell) {
  return html("article", { class: "decision panel" },
    html("h3", {}, "For ", user === null ? "an unknown user" : html("span", { class: "name" }, user)),
    html("p", { class: "chosen" }, answer.chosen),
    html("p", {}, answer.why),
    table(answer),
    leftOut(answer.left_out),
    html("dl", { class: "details" },
      detail("If it fails", answer.fallbacks.length ? answer.fallbacks.join(", then ") : "nothing else to ask"),
      detail("Task", task(answer)),
      detail("Rests on", SOURCES[answer.based_on.source]),
      budget(answer.budget),
      detail("Decision", html("code", {}, answer.decision_id))),
    answer.items?.length ? [html("h4", {}, "Items"), items(answer.items)] : null,
    user === null ? null : feedback(answer, user, tell));
}

/** A question that was refused: the reasons against each model, or the error as the service words it. */
export function refused(problem, user) {
  return html("article", { class: "decision panel" },
    html("h3", {}, "For ", user === null ? "an unknown user" : html("span", { class: "name" }, user)),
    problem.leftOut
      ? html("div", { role: "alert" },
        html("p", { class: "problem" }, "No model is left."),
        leftOut(problem.leftOut))
      : html("p", { class: "problem", role: "alert" }, problem.message));
}

/** Whether two users get the same model, in words. */
export function compared(answers, users) {
  const [one, other] = answers.map(({ chosen }) => chosen);
  const names = users.map((user) => user ?? "an unknown user");
  return one === other
    ? `Same question, same model: ${one} for both.`
    : `Same question, different models: ${one} for ${names[0]}, ${other} for ${names[1]}.`;
}

const detail = (term, text) => html("div", {}, html("dt", {}, term), html("dd", {}, text));

function budget({ user_left_usd: user, key_left_usd: key }) {
  const left = [["user", user], ["key", key]].filter(([, usd]) => usd !== null);
  if (!left.length) return null;
  return detail("May spend", left.map(([who, usd]) => `the ${who} ${number(usd)} USD`).join(", "));
}

function task({ task: name, task_source: source }) {
  return {
    query: `${name} (this query is known from training)`,
    given: `${name} (as given)`,
    nearest: `${name} (nearest to the query)`,
    population: "none: the mean over all tasks",
  }[source];
}

function table({ models, chosen }) {
  const columns = [
    ["quality", ({ quality }) => number(quality), ({ quality }) => quality],
    ["cost, USD", ({ cost_usd: usd }) => number(usd), ({ cost_usd: usd }) => usd],
    ["latency, ms", ({ latency_ms: ms }) => number(ms), ({ latency_ms: ms }) => ms],
  ].filter(([, , value]) => models.some((model) => value(model) !== null));
  const row = (model) => html("tr", { class: model.llm === chosen ? "strong" : null },
    html("th", { scope: "row" }, model.llm),
    html("td", { class: "drawn" }, chance(model)),
    html("td", {}, percent(model.preference)),
    columns.map(([, text]) => html("td", {}, text(model))));
  const scrolled = { class: "scroll", tabindex: 0, role: "group", "aria-label": "Candidates" };
  return html("div", scrolled, html("table", {},
    html("thead", {}, html("tr", {},
      html("th", { scope: "col" }, "model"),
      html("th", { scope: "col", colspan: 2 }, "chance"),
      columns.map(([title]) => html("th", { scope: "col" }, title)))),
    html("tbody", {}, models.map(row))));
}

function chance({ preference, score, sd }) {
  return svg("svg", { class: "bar", "aria-hidden": "true" },
    svg("title", {}, `logit ${number(score)}, standard deviation ${number(sd)}`),
    svg("rect", { class: "track", width: "100%", height: "100%", rx: 3 }),
    svg("rect", { class: "share", width: `${(100 * preference).toFixed(2)}%`, height: "100%", rx: 3 }));
}

function leftOut(reasons) {
  const entries = Object.entries(reasons);
  if (!entries.length) return null;
  return [html("h4", {}, "Left out"), html("ul", { class: "described" },
    entries.map(([llm, why]) => html("li", {}, html("b", {}, llm), ": ", why.join("; "))))];
}

function items(ranked) {
  const most = Math.max(...ranked.map(({ score }) => score), 0) || 1;
  const rows = ranked.map(({ item, score }) => ({ label: item, share: score / most, text: number(score) }));
  return bars(rows, { class: "scored" });
}

function feedback(answer, user, tell) {
  const said = html("p", { class: "said", role: "status" });
  const instead = html("div", { class: "line" });
  const others = answer.models.map(({ llm }) => llm).filter((llm) => llm !== answer.chosen);
  const send = async (told, words) => {
    try {
      await tell({ decision_id: answer.decision_id, user, ...told }, user);
      replace(said, words);
      return true;
    } catch (problem) {
      replace(said, problem.message);
      return false;
    }
  };
  const up = async () => {
    if (await send({ thumbs: 1 }, `Kept as a choice of ${answer.chosen}.`)) replace(instead);
  };
  const down = async () => {
    const asked = others.length ? " Which would have been right?" : "";
    if (!await send({ thumbs: -1 }, `Kept: not ${answer.chosen}.${asked}`)) return;
    const prefer = (llm) => button(llm, () => send({ llm }, `Kept as a choice of ${llm}.`), { class: "quiet" });
    replace(instead, others.map(prefer));
  };
  const thumbs = html("div", { class: "line" },
    button("Right choice", up, { class: "quiet" }), button("Wrong choice", down, { class: "quiet" }));
  const label = "Feedback on this decision";
  return html("div", { class: "feedback", role: "group", "aria-label": label }, thumbs, said, instead);
}
