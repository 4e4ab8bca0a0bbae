/* What every page does first: find out who reads it, and ask for a token only where the service does. */

import { ApiError, forgetToken, get, keepToken, token } from "./api.js";
import { byId, setText } from "./dom.js";

let isShown = false;

/** Runs `show(who)` once somebody is known. */
export async function begin(show) {
  byId("forget").addEventListener("click", () => {
    forgetToken();
    location.reload();
  });
  byId("sign-in-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const field = byId("token");
    keepToken(field.value.trim());
    field.value = "";
    await enter(show, true);
  });
  await enter(show, false);
}

async function enter(show, isNew) {
  let who;
  try {
    who = await get("whoami");
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) {
      askForToken(isNew || token() ? "The service does not know this token, or it has expired or was revoked." : "");
    } else {
      byId("page").hidden = false;
      complain(error);
      if (error.status === 0) setTimeout(() => enter(show, isNew), 3000);
    }
    return;
  }
  byId("sign-in").hidden = true;
  byId("page").hidden = false;
  complain(null);
  setText(byId("who"), token() ? `${who.name}, ${who.role} of ${who.team}` : "this machine, no token needed");
  byId("forget").hidden = !token();
  // A token that was taken back in between: the page that it had filled starts anew.
  if (isShown) location.reload();
  else {
    isShown = true;
    show(who);
  }
}

function askForToken(problem) {
  forgetToken();
  byId("forget").hidden = true;
  setText(byId("who"), "");
  byId("page").hidden = true;
  byId("sign-in").hidden = false;
  setText(byId("sign-in-problem"), problem);
  byId("token").focus();
}

/** Shows what is wrong above the page, or that nothing is; what was there before stays readable. */
export function complain(error) {
  if (error?.status === 401) askForToken("The service does not take this token any more.");
  const notice = byId("notice");
  notice.hidden = !error;
  setText(notice, error ? error.message : "");
}

/** For those who hear the page. */
export function announce(text) {
  setText(byId("news"), text);
}

/** Calls `look` now and again after the milliseconds that it gives back, while the page can be seen; gives a
 *  function that makes it look at once. Of looks that overtake each other only the last one may show its answer. */
export function watch(look, { isQuiet = false } = {}) {
  let timer = 0;
  let control = null;
  const again = async () => {
    clearTimeout(timer);
    control?.abort();
    const mine = new AbortController();
    control = mine;
    let waitMs = 5000;
    try {
      waitMs = await look(mine.signal);
      if (mine === control && !isQuiet) complain(null);
    } catch (error) {
      if (error.name === "AbortError" || mine !== control) return;
      if (!isQuiet) complain(error);
      if (error.status === 401) return;
    }
    if (mine === control && waitMs && !document.hidden) timer = setTimeout(again, waitMs);
  };
  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : again()));
  again();
  return again;
}
