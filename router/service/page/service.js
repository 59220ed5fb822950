// The service's endpoints. The key is kept in this tab's session storage and sent in a header, never in a URL.

const KEY = "fairpath-key";

/** An error as the service words it. */
export class Problem extends Error {
  constructor(status, detail, leftOut) {
    super(detail);
    this.status = status;
    this.leftOut = leftOut;
  }
}

export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

export function keepKey(key) {
  sessionStorage.setItem(KEY, key);
}

export function forgetKey() {
  sessionStorage.removeItem(KEY);
}

async function ask(path, body) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key !== null) headers["X-API-Key"] = key;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const method = body === undefined ? "GET" : "POST";
  let response;
  try {
    response = await fetch(path, { method, headers, body: JSON.stringify(body) });
  } catch {
    throw new Problem(0, "The service does not answer.");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok && path !== "readyz") {
    const detail = answer.detail ?? `The service answered with status ${response.status}.`;
    throw new Problem(response.status, detail, answer.left_out);
  }
  return answer;
}

export const users = (limit) => ask(`v1/users?limit=${limit}`);
export const profile = (user) => ask(`v1/users/${encodeURIComponent(user)}/profile`);
export const route = (question) => ask("v1/route", question);
export const feedback = (told) => ask("v1/feedback", told);
export const releases = () => ask("v1/releases");
export const readiness = () => ask("readyz");
