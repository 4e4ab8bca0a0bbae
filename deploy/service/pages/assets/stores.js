/* The stores that lie at or below a place. */

import { get } from "./api.js";
import { checkedCell } from "./checked.js";
import { breakable, byId, el, setAttribute, setText } from "./dom.js";
import { finding, shortName, wanted } from "./find.js";
import { keeping } from "./keeping.js";
import { begin } from "./page.js";
import { ago, bytes, count } from "./words.js";

const FIELDS = ["url", "model", "corpus", "hook_point"];
const LIMIT = 100;

const time = (seconds) =>
  seconds ? el("time", { datetime: new Date(seconds * 1000).toISOString(), title: new Date(seconds * 1000).toLocaleString(), text: ago(Date.now() - seconds * 1000) }) : "never";

function row(store, readers, check) {
  const points = Object.keys(store.hook_points);
  const named = points.length > 2 ? `${points[0]} and ${points.length - 1} more` : points.join(", ");
  const what = [store.dtype, store.layout, store.codec === "none" ? "" : store.codec];
  return el("tr", {},
    el("th", { scope: "row", class: "place" }, el("a", { href: `store?${new URLSearchParams({ url: store.url })}`, title: store.url, text: shortName(store.url) }),
      el("span", { class: "why" }, store.problem || breakable(store.url))),
    el("td", {}, el("span", { class: `status ${store.state}`, text: store.state })),
    el("td", { class: "wrap" }, breakable(store.model)), el("td", { class: "wrap" }, breakable(store.corpus)),
    el("td", { class: "wrap", title: points.join("\n") }, breakable(named)),
    el("td", { class: "number", text: store.num_rows ? count(store.num_rows) : "" }),
    el("td", { class: "number" }, bytes(store.size_bytes), el("span", { class: "why", text: what.filter(Boolean).join(", ") })),
    el("td", { class: "accepted" }, readers ? `${count(readers)} ${readers === 1 ? "job" : "jobs"}` : "no job", el("span", { class: "why" }, "used ", time(store.last_used_s))),
    el("td", {}, ...checkedCell(check)), el("td", { class: "wrap", text: keeping(store) }));
}

async function look(query, isWanted) {
  const offset = Math.max(0, Number.parseInt(query.get("offset") || "0", 10) || 0);
  const facts = Object.fromEntries(FIELDS.map((name) => [name, query.get(name)]));
  const page = await get("stores", { ...facts, limit: LIMIT, offset });
  if (!isWanted()) return;
  byId("rows").replaceChildren(...page.stores.map((store) => row(store, page.readers[store.url], page.checks[store.url])));
  byId("table").hidden = !page.stores.length;
  byId("empty").hidden = page.stores.length > 0;
  setText(byId("empty"), "No store is there.");
  setText(byId("count"), `${count(page.total)} ${page.total === 1 ? "store" : "stores"}`);
  byId("paging").hidden = page.total <= LIMIT && !offset;
  for (const [id, isThere, to] of [["newer", offset > 0, offset - LIMIT], ["older", offset + LIMIT < page.total, offset + LIMIT]]) {
    const next = wanted();
    next.set("offset", String(Math.max(0, to)));
    setAttribute(byId(id), "href", isThere ? `?${next}` : null);
    setAttribute(byId(id), "aria-disabled", isThere ? null : "true");
  }
  setText(byId("range"), page.stores.length ? `${count(offset + 1)} to ${count(offset + page.stores.length)} of ${count(page.total)}` : "");
}

begin((who) => finding(who, FIELDS, look));
