/* What the pages of stores and of dictionaries share: the form that says where to look, kept in the address. */

import { byId, el, setText } from "./dom.js";
import { complain } from "./page.js";

const KEY = "headworks-place";

export const wanted = () => new URLSearchParams(location.search);

/** Fills the form from the address and runs `look(query, isWanted)` now and whenever the reader asks anew. `isWanted()` says
 *  whether no later search has begun. Where the service has no policy a place must be named; the last one of this tab is offered. */
export function finding(who, fields, look) {
  byId("places").replaceChildren(...(who.places || []).map((place) => el("option", { value: place })));
  setText(byId("url-note"), who.places ? "(empty: all that your team may read)" : "(path or URL)");
  let looks = 0;
  const run = async () => {
    const mine = ++looks;
    for (const name of fields) byId(name).value = wanted().get(name) || "";
    if (!byId("url").value && !who.places) {
      byId("url").value = sessionStorage.getItem(KEY) || "";
      byId("empty").hidden = false;
      setText(byId("empty"), "Name a folder or URL to look in.");
      return;
    }
    setText(byId("count"), "looking");
    try {
      await look(wanted(), () => mine === looks);
      if (mine !== looks) return;
      if (wanted().get("url")) sessionStorage.setItem(KEY, wanted().get("url"));
      complain(null);
    } catch (error) {
      if (mine !== looks) return;
      setText(byId("count"), "");
      complain(error);
    }
  };
  byId("filters").addEventListener("submit", (event) => {
    event.preventDefault();
    const query = new URLSearchParams();
    for (const name of fields) if (byId(name).value.trim()) query.set(name, byId(name).value.trim());
    history.pushState(null, "", `?${query}`);
    run();
  });
  addEventListener("popstate", run);
  run();
}

/** The last parts of a place, for where the whole is shown beside it. */
export const shortName = (url) => url.split("/").filter(Boolean).slice(-2).join("/");
