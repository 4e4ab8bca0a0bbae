/* The dictionaries at or below a place, on the plane and in a table. */

import { get } from "./api.js";
import { byId, el, setText } from "./dom.js";
import { finding, shortName } from "./find.js";
import { begin } from "./page.js";
import { draw, point } from "./plane.js";
import { count, figure } from "./words.js";

const LIMIT = 1000;
let found = [];
let total = 0;
let place = "";

/** Only dictionaries of the same points are compared with each other, so these make the groups. */
function groupOf(row) {
  const [from, to] = [Object.keys(row.sources), Object.keys(row.targets)];
  const named = (points) => (points.length > 2 ? `${points[0]} and ${points.length - 1} more` : points.join(", "));
  return from.join() === to.join() ? named(from) : `${named(from)} to ${named(to)}`;
}

function figuresOf(row, kind) {
  const measured = row.evaluations.at(-1);
  if (kind !== "training" && measured) return { ...measured, isHeldOut: true };
  return kind === "evaluation" ? null : { ...row.metrics, isHeldOut: false };
}

function show() {
  const groups = [...new Set(found.map(groupOf))];
  const [group, kind] = [byId("point").value, byId("figures").value];
  const rows = found
    .filter((row) => !group || groupOf(row) === group)
    .map((row) => ({ row, facts: figuresOf(row, kind), colour: groups.indexOf(groupOf(row)) % 8 }))
    .filter(({ facts }) => facts);
  const points = rows
    .filter(({ facts }) => Number.isFinite(facts.l0) && Number.isFinite(facts.fvu))
    .map(({ row, facts, colour }) => ({ key: row.url, name: row.name, l0: facts.l0, fvu: facts.fvu, colour, isHeldOut: facts.isHeldOut }));
  setText(byId("plane-text"), draw(byId("plane"), points));
  byId("rows").replaceChildren(...rows.sort((one, other) => (one.facts.l0 ?? 0) - (other.facts.l0 ?? 0)).map(line));
  const shown = groups.map((name, index) => ({ name, index })).filter(({ name }) => !group || name === group);
  byId("legend").replaceChildren(...shown.map(({ name, index }) => el("li", { class: `s${index % 8}` }, el("span", { class: "key", "aria-hidden": "true" }), name)));
  byId("found").hidden = !found.length;
  byId("empty").hidden = found.length > 0;
  setText(byId("empty"), "No dictionary is there.");
  setText(byId("count"), `${count(total)} ${total === 1 ? "dictionary" : "dictionaries"}${total > found.length ? `, the first ${count(found.length)} shown` : ""}`);
}

function line({ row, facts, colour }) {
  const address = `dictionary?${new URLSearchParams({ url: row.url, ...(place ? { place } : {}) })}`;
  const name = el("th", { scope: "row", class: `place s${colour}` }, el("span", { class: "key", "aria-hidden": "true" }), el("a", { href: address, title: row.url, text: row.name }),
    el("span", { class: "why", text: `${shortName(row.url)}, ${row.activation}` }));
  const values = [figure(facts.l0), figure(facts.fvu), figure(facts.dead_share), figure(facts.ce_recovered), count(row.num_latents)];
  const made = el("tr", {}, name, ...values.map((text) => el("td", { class: "number", text })), el("td", { text: facts.isHeldOut ? `${count(facts.rows)} held-out rows` : "training" }));
  for (const [event, key] of [["mouseenter", row.url], ["focusin", row.url], ["mouseleave", ""], ["focusout", ""]]) {
    made.addEventListener(event, () => point(byId("plane"), key));
  }
  return made;
}

async function look(query, isWanted) {
  const url = query.get("url") || "";
  const page = await get("comparison", { url, limit: LIMIT });
  // A later search has begun.
  if (!isWanted()) return;
  place = url;
  [found, total] = [page.dictionaries, page.total];
  const before = byId("point").value;
  const groups = [...new Set(found.map(groupOf))];
  byId("point").replaceChildren(el("option", { value: "", text: "all hook points" }), ...groups.map((text) => el("option", { value: text, text })));
  byId("point").value = groups.includes(before) ? before : "";
  show();
}

begin((who) => {
  for (const name of ["point", "figures"]) byId(name).addEventListener("change", show);
  finding(who, ["url"], look);
});
