/* The JSON API. The token is kept by this tab alone and travels in a header, never in an address. */

const KEY = "headworks-token";
let skewMs = 0;

export class ApiError extends Error {
  constructor(status, facts) {
    super(facts.message);
    this.status = status;
    this.field = facts.field || "";
  }
}

export const token = () => sessionStorage.getItem(KEY) || "";
export const keepToken = (secret) => sessionStorage.setItem(KEY, secret);
export const forgetToken = () => sessionStorage.removeItem(KEY);

/** Milliseconds since 1970 by the service's clock, so that a wrong clock here makes no wrong times. */
export const nowMs = () => Date.now() + skewMs;

/** The answer, or an ApiError; status 0: nothing answered. */
export async function send(path, { method = "GET", query = {}, body, signal } = {}) {
  const url = new URL(`api/v1/${path}`, document.baseURI);
  for (const [name, value] of Object.entries(query)) {
    if (value !== "" && value !== null && value !== undefined) url.searchParams.set(name, value);
  }
  const headers = {};
  if (token()) headers.Authorization = `Bearer ${token()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(url, {
      method, headers, signal, cache: "no-store", redirect: "error", body: body === undefined ? null : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: "The service does not answer. Trying again." });
  }
  const said = Date.parse(answer.headers.get("date") || "");
  // The header has whole seconds, so less is no difference.
  if (said) skewMs = Math.abs(said - Date.now()) > 5000 ? said - Date.now() : 0;
  if (answer.ok) return answer;
  const found = await answer.json().catch(() => null);
  throw new ApiError(answer.status, found?.error || { message: `The service answered ${answer.status}.` });
}

export const get = async (path, query, signal) => (await send(path, { query, signal })).json();
export const post = async (path, body) => (await send(path, { method: "POST", body })).json();
