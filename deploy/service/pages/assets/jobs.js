/* The list of jobs. Filter and page are in the address, so they can be kept and sent. */

import { get, nowMs } from "./api.js";
import { byId, el, reconcile, setAttribute, setText } from "./dom.js";
import { announce, begin, watch } from "./page.js";
import { fillBar, pace, share } from "./progress.js";
import { showStatus } from "./status.js";
import { ENDED, ago, count, moment, runningTime, short } from "./words.js";

const LIMIT = 50;
const FILTERS = ["status", "kind", "name", "team"];
const seen = new Map();
let shown = [];

const wanted = () => new URLSearchParams(location.search);
const offset = () => Math.max(0, Number.parseInt(wanted().get("offset") || "0", 10) || 0);

function address(changes) {
  const query = wanted();
  for (const [name, value] of Object.entries(changes)) {
    if (value) query.set(name, value);
    else query.delete(name);
  }
  const text = query.toString();
  return text ? `./?${text}` : "./";
}

function makeRow() {
  const name = el("td", { class: "job" }, el("a"), el("span", { class: "why" }));
  const status = el("td", {}, el("span"));
  const progress = el("td", { class: "progress" }, el("progress", { max: 1, hidden: true }), el("span", { class: "why" }));
  const cells = ["kind", "number attempt", "cluster", "owner"].map((kind) => el("td", { class: kind }));
  return el("tr", {}, name, status, progress, ...cells, el("td", { class: "accepted" }, el("time")), el("td", { class: "number time" }));
}

function fillRow(row, job) {
  const [name, status, progress, kind, attempt, cluster, owner, accepted] = row.children;
  const link = name.firstElementChild;
  setText(link, job.id);
  setAttribute(link, "href", `job?id=${encodeURIComponent(job.id)}`);
  const tells = ["WAITING", "FAILED", "LOST"].includes(job.status) || (job.message && !ENDED.has(job.status));
  setText(name.lastElementChild, tells ? job.message : "");
  showStatus(status.firstElementChild, job);
  fillProgress(progress, job.tasks.at(-1));
  setText(kind, job.kind);
  setText(attempt, String(job.attempt));
  setText(cluster, job.cluster);
  setText(owner, job.owner === job.team ? job.owner : `${job.owner} (${job.team})`);
  const time = accepted.firstElementChild;
  setAttribute(time, "datetime", job.accepted);
  setAttribute(time, "title", moment(job.accepted));
  fillTimes(row, job);
}

/** Of the task of which the job spoke last. */
function fillProgress(cell, task) {
  const part = task ? share(task) : null;
  fillBar(cell.firstElementChild, task);
  const done = part === null ? task && `${short(task.done)} ${task.unit}` : `${Math.floor(part * 100)} %`;
  setText(cell.lastElementChild, task ? [done, pace(task)].filter(Boolean).join(", ") : "");
  setAttribute(cell, "title", task ? task.name : null);
}

function fillTimes(row, job) {
  setText(row.querySelector("time"), ago(nowMs() - Date.parse(job.accepted)));
  setText(row.lastElementChild, runningTime(job, nowMs()));
}

function tell(jobs) {
  const changed = jobs.filter((job) => seen.has(job.id) && seen.get(job.id) !== job.status);
  for (const job of jobs) seen.set(job.id, job.status);
  if (changed.length) announce(changed.map((job) => `${job.id} is now ${job.status}`).join(". "));
}

async function look(signal) {
  const query = Object.fromEntries(FILTERS.map((name) => [name, wanted().get(name)]));
  const page = await get("jobs", { ...query, limit: LIMIT, offset: offset() }, signal);
  shown = page.jobs;
  tell(shown);
  reconcile(byId("rows"), shown, (job) => job.id, makeRow, fillRow);
  const isFiltered = FILTERS.some((name) => wanted().get(name));
  setText(byId("count"), `${count(page.total)} ${page.total === 1 ? "job" : "jobs"}${isFiltered ? " found" : ""}`);
  byId("empty").hidden = shown.length > 0;
  setText(byId("empty"), isFiltered ? "No job is like that." : "No jobs yet. `headworks submit SPEC.yaml` makes the first.");
  byId("clear").hidden = !isFiltered;
  showPaging(page.total);
  return shown.some((job) => !ENDED.has(job.status)) ? 3000 : 6000;
}

function showPaging(total) {
  const from = offset();
  byId("paging").hidden = total <= LIMIT && !from;
  for (const [id, isThere, to] of [["newer", from > 0, from - LIMIT], ["older", from + LIMIT < total, from + LIMIT]]) {
    setAttribute(byId(id), "href", isThere ? address({ offset: String(Math.max(0, to) || "") }) : null);
    setAttribute(byId(id), "aria-disabled", isThere ? null : "true");
  }
  setText(byId("range"), shown.length ? `${count(from + 1)} to ${count(from + shown.length)} of ${count(total)}` : "");
}

async function lookAtClusters(signal) {
  const found = await get("clusters", {}, signal);
  const away = found.filter((cluster) => !cluster.reachable);
  reconcile(byId("clusters"), away, (cluster) => cluster.name, () => el("p", { class: "notice warning" }), (line, cluster) =>
    setText(line, `Cluster ${cluster.name} does not answer; its jobs wait. ${cluster.problem}`));
  return 15000;
}

function readFilters() {
  for (const name of FILTERS) byId(name).value = wanted().get(name) || "";
}

begin((who) => {
  byId("team-label").hidden = who.role !== "admin" || who.name === "local";
  readFilters();
  const again = watch(look);
  watch(lookAtClusters, { isQuiet: true });
  const apply = (event) => {
    event.preventDefault();
    const filters = Object.fromEntries(FILTERS.map((name) => [name, byId(name).value.trim()]));
    history.pushState(null, "", address({ ...filters, offset: "" }));
    again();
  };
  byId("filters").addEventListener("submit", apply);
  for (const name of ["status", "kind"]) byId(name).addEventListener("change", apply);
  addEventListener("popstate", () => {
    readFilters();
    again();
  });
  setInterval(() => {
    const rows = byId("rows").children;
    shown.forEach((job, place) => rows[place] && fillTimes(rows[place], job));
  }, 1000);
});
