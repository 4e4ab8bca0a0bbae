/* One store: what it holds, where it came from, and how long it is kept. */

import { get, send } from "./api.js";
import { checkedWords } from "./checked.js";
import { breakable, byId, el, setFacts, setText } from "./dom.js";
import { keeping } from "./keeping.js";
import { shortName, wanted } from "./find.js";
import { announce, begin, complain } from "./page.js";
import { bytes, count, figure } from "./words.js";
import { yaml } from "./yaml.js";

const url = wanted().get("url") || "";
const code = (text) => (text ? el("code", { title: text, text: text.slice(0, 24) }) : null);
const date = (seconds) => (seconds ? new Date(seconds * 1000).toLocaleString() : "");

function showCheck(check) {
  byId("check-section").hidden = !check;
  if (!check) return;
  setText(byId("check-words"), checkedWords(check));
  byId("check-problems").replaceChildren(...check.problems.map((text) => el("li", { text })));
}

async function checkNow() {
  const button = byId("check");
  button.disabled = true;
  setText(button, "Checking");
  try {
    showCheck(await (await send("store/check", { method: "POST", query: { url } })).json());
    complain(null);
    announce(byId("check-words").textContent);
  } catch (error) {
    complain(error);
  } finally {
    button.disabled = false;
    setText(button, "Check it now");
  }
}

function showEntry(entry, readers) {
  setText(byId("message"), entry.problem);
  setFacts(byId("facts"), [
    ["State", el("span", { class: `status ${entry.state}`, text: entry.state })], ["Rows", entry.num_rows ? count(entry.num_rows) : ""],
    ["Size", bytes(entry.size_bytes)], ["Type", [entry.dtype, entry.layout, entry.codec === "none" ? "" : entry.codec].filter(Boolean).join(", ")],
    ["Keeping", keeping(entry)], ["Created", date(entry.created_s)], ["Last used", date(entry.last_used_s) || "never"],
    ["Read by", readers ? `${count(readers)} ${readers === 1 ? "job" : "jobs"} of this service` : "no job of this service"],
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

begin(async (who) => {
  byId("check").hidden = who.role === "viewer";
  byId("check").addEventListener("click", checkNow);
  setText(byId("name"), shortName(url));
  setText(byId("url"), url);
  document.title = `${shortName(url)} - Headworks`;
  try {
    const page = await get("stores", { url });
    const found = page.stores.find((each) => each.url === url || each.url === url.replace(/\/+$/, ""));
    if (found) showEntry(found, page.readers[found.url]);
    if (found) showCheck(page.checks[found.url]);
    const facts = await get("store", { url });
    byId("points").replaceChildren(...Object.entries(facts.hook_points).map(point));
    setText(byId("model"), yaml({ model: facts.model, versions: facts.versions, shuffled: facts.shuffled }));
  } catch (error) {
    complain(error);
  }
});
