// The page: looks up users, asks questions, tells feedback. The user shown is in the address, after the #.

import { compared, refused, shownDecision } from "./decision.js";
import { busy, byId, html, replace } from "./dom.js";
import { look, shownProfile } from "./profile.js";
import * as service from "./service.js";

const EXAMPLES = 12;
const HEALTH_MS = 15_000;

let shown = null; // the profile on the page

async function start() {
  byId("forget").hidden = !service.hasKey();
  try {
    const { users } = await service.users(EXAMPLES);
    byId("key-form").hidden = true;
    await begin(users);
  } catch (problem) {
    wantKey(problem);
  }
  footer();
}

/** Offer examples, and show the user in the address or else the first of them, unless another is being typed. */
async function begin(users) {
  clearProblem();
  const field = byId("user");
  const typing = location.hash === "" && (field.value !== "" || document.activeElement === field);
  replace(byId("examples"), users.map((user) => html("a", { href: look(user) }, user)));
  if ((typing || !await lookUp(userInAddress())) && users.length) await prepare(users[0]);
}

/** Show a problem, and the field for a key where one would help. */
function wantKey(problem) {
  showProblem(problem);
  const refusal = [401, 403].includes(problem.status);
  byId("key-form").hidden = !refusal;
  if (!refusal) return;
  replace(byId("examples"));
  replace(byId("profile"));
  byId("ask").hidden = true;
  byId("key").focus();
}

function showProblem(problem) {
  replace(byId("problem"), problem.message);
  byId("problem").hidden = false;
}

function clearProblem() {
  byId("problem").hidden = true;
  replace(byId("problem"));
}

function clearDecisions() {
  replace(byId("decisions"));
  replace(byId("comparison"));
  byId("comparison").hidden = true;
}

/** The user in the address, or else the first example. */
function userInAddress() {
  const text = location.hash.slice(1);
  if (text === "") return byId("examples").firstChild?.textContent;
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** Show a user's profile; `before` is what was shown until its last feedback. Returns whether it is shown. */
async function lookUp(user, before = null) {
  if (user === undefined) return false;
  if (before === null && shown?.user !== user) clearDecisions();
  byId("user").value = user;
  for (const link of byId("examples").children) {
    if (link.textContent === user) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  let profile;
  try {
    profile = await service.profile(user);
  } catch (problem) {
    shown = null;
    replace(byId("profile"));
    if ([401, 403].includes(problem.status)) wantKey(problem);
    else showProblem(problem);
    return false;
  }
  if (byId("user").value !== user) return false; // another one was asked for meanwhile
  clearProblem();
  shown = profile;
  replace(byId("profile"), shownProfile(profile, before));
  offer(profile);
  if (before === null) byId("asker").value = user;
  return true;
}

/** Offer questions without a profile on the page: the models and tasks are those of any user. */
async function prepare(user) {
  try {
    offer(await service.profile(user));
  } catch (problem) {
    showProblem(problem);
  }
}

/** Fill the form of questions with the tasks and models of the release. */
function offer(profile) {
  const task = byId("task");
  const chosen = task.value;
  const tasks = profile.by_task.map((entry) => entry.task);
  const option = (value, name) => html("option", { value }, name);
  replace(task, option("", "by the query"), tasks.map((name) => option(name, name)));
  task.value = tasks.includes(chosen) ? chosen : "";
  const excluded = new Set(checked());
  const names = profile.overall.llms.map(({ llm }) => llm).sort();
  replace(byId("exclude"), names.map((llm) => html("label", {},
    html("input", { type: "checkbox", value: llm, checked: excluded.has(llm) }), llm)));
  byId("ask").hidden = false;
}

const checked = () => [...byId("exclude").querySelectorAll("input:checked")].map(({ value }) => value);

function question() {
  const asked = { items: Number(byId("items").value), exclude: checked() };
  const [query, task, cost] = ["query", "task", "max-cost"].map((id) => byId(id).value);
  if (query.trim()) asked.query = query;
  if (task) asked.task = task;
  if (cost) asked.constraints = { max_cost_usd: Number(cost) };
  return asked;
}

async function askQuestion() {
  const [asker, other] = ["asker", "other"].map((id) => byId(id).value.trim());
  const users = [asker || null, ...(other ? [other] : [])];
  const asked = question();
  const ask = (user) => service.route(user === null ? asked : { ...asked, user });
  const results = await Promise.allSettled(users.map(ask));
  replace(byId("decisions"), results.map(({ value, reason }, place) =>
    (value ? shownDecision(value, users[place], tell) : refused(reason, users[place]))));
  const answers = results.map(({ value }) => value).filter(Boolean);
  byId("comparison").hidden = answers.length < 2;
  if (answers.length === 2) replace(byId("comparison"), compared(answers, users));
  footer();
}

/** Send feedback; what is believed of the user shown is read again. */
async function tell(told, user) {
  await service.feedback(told);
  if (shown?.user === user) await lookUp(user, shown);
}

/** Release, encoder and health. */
async function footer() {
  const known = byId("key-form").hidden ? service.releases() : Promise.reject(new Error("a key is needed"));
  const [ready, releases] = await Promise.allSettled([service.readiness(), known]);
  const state = ready.value;
  const facts = {
    Release: state?.release ?? "none",
    Encoder: releases.value ? releases.value.encoder ?? "none" : null,
    Health: state ? (state.ready ? "ready" : state.reasons.join("; ")) : ready.reason.message,
    Refused: releases.value?.refused ? releases.value.refused.reason : null,
  };
  replace(byId("facts"), Object.entries(facts).filter(([, text]) => text !== null).map(([term, text]) =>
    html("div", {}, html("dt", {}, term), html("dd", {}, text))));
}

function onSubmit(id, action) {
  byId(id).addEventListener("submit", (event) => {
    event.preventDefault();
    busy(event.submitter ?? byId(id).querySelector("button"), action);
  });
}

onSubmit("key-form", () => {
  service.keepKey(byId("key").value);
  byId("key").value = "";
  return start();
});
onSubmit("user-form", () => {
  const user = byId("user").value;
  if (userInAddress() === user) return lookUp(user);
  location.hash = look(user);
  return null;
});
onSubmit("ask-form", askQuestion);
byId("forget").addEventListener("click", () => {
  service.forgetKey();
  location.reload();
});
window.addEventListener("hashchange", async () => {
  if (await lookUp(userInAddress())) byId("profile").focus({ preventScroll: true });
});
setInterval(() => document.hidden || footer(), HEALTH_MS);
start();
