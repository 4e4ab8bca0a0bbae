/* One store: what it holds, where it came from, and how long it is kept. */

import { get } from "./api.js";
import { breakable, byId, el, setFacts, setText } from "./dom.js";
import { keeping } from "./keeping.js";
import { shortName, wanted } from "./find.js";
import { begin, complain } from "./page.js";
import { bytes, count, figure } from "./words.js";
import { yaml } from "./yaml.js";

const url = wanted().get("url") || "";
const code = (text) => (text ? el("code", { title: text, text: text.slice(0, 24) }) : null);
const date = (seconds) => (seconds ? new Date(seconds * 1000).toLocaleString() : "");

function showEntry(entry) {
  setText(byId("message"), entry.problem);
  setFacts(byId("facts"), [
    ["State", el("span", { class: `status ${entry.state}`, text: entry.state })], ["Rows", entry.num_rows ? count(entry.num_rows) : ""],
    ["Size", bytes(entry.size_bytes)], ["Type", [entry.dtype, entry.layout, entry.codec === "none" ? "" : entry.codec].filter(Boolean).join(", ")],
    ["Keeping", keeping(entry)], ["Created", date(entry.created_s)], ["Last used", date(entry.last_used_s) || "never"],
    ["Group", entry.group ? el("a", { href: `stores?${new URLSearchParams({ url: entry.group })}`, text: shortName(entry.group) }) : null],
  ]);
  setFacts(byId("provenance"), [
    ["Model", entry.model ? breakable(entry.model) : null], ["Corpus", entry.corpus ? breakable(entry.corpus) : null],
    ["Fingerprint", code(entry.fingerprint)], ["Token table", code(entry.table_fingerprint)],
  ]);
}

function point([name, facts]) {
  const norms = facts.norm_quantiles || {};
  const values = [
    count(facts.d_model), facts.rows === undefined ? "" : count(facts.rows), figure(facts.mean_norm), figure(norms["0.01"]),
    figure(norms["0.5"]), figure(norms["0.99"]), facts.num_nan === undefined ? "" : count(facts.num_nan),
    facts.num_inf === undefined ? "" : count(facts.num_inf),
  ];
  return el("tr", {}, el("th", { scope: "row" }, el("code", { text: name })), ...values.map((text) => el("td", { class: "number", text })));
}

begin(async () => {
  setText(byId("name"), shortName(url));
  setText(byId("url"), url);
  document.title = `${shortName(url)} - Headworks`;
  try {
    const found = (await get("stores", { url })).stores.find((each) => each.url === url || each.url === url.replace(/\/+$/, ""));
    if (found) showEntry(found);
    const facts = await get("store", { url });
    byId("points").replaceChildren(...Object.entries(facts.hook_points).map(point));
    setText(byId("model"), yaml({ model: facts.model, versions: facts.versions, shuffled: facts.shuffled }));
  } catch (error) {
    complain(error);
  }
});
