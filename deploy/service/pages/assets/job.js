/* One attempt of a job. */

import { get, nowMs, post } from "./api.js";
import { drawCurves, showStages } from "./course.js";
import { breakable, byId, el, reconcile, setAttribute, setFacts, setText } from "./dom.js";
import { LogReader, follow, writeTo } from "./log.js";
import { announce, begin, complain, watch } from "./page.js";
import { showTasks } from "./progress.js";
import { showStatus } from "./status.js";
import { ENDED, ago, bytes, count, duration, figure, moment, runningTime } from "./words.js";
import { yaml } from "./yaml.js";

const id = new URLSearchParams(location.search).get("id") || "";
const path = `jobs/${encodeURIComponent(id)}`;
const log = new LogReader();
const PAGES = { collect: "stores", shuffle: "stores", train: "dictionaries", evaluate: "dictionaries", pipeline: "dictionaries" };
let status = "";
let mayAct = false;
let isCourseWhole = false;
let again = () => {};

const badge = el("span");
const when = (iso) => (iso ? el("time", { datetime: iso, title: moment(iso), text: `${moment(iso)} (${ago(nowMs() - Date.parse(iso))})` }) : null);

function show(job) {
  document.title = `${job.name}, ${job.status.toLowerCase()} - Headworks`;
  setText(byId("kind"), job.kind);
  setText(byId("name"), job.name);
  setText(byId("id"), job.id);
  setText(byId("message"), job.message);
  setAttribute(byId("message"), "class", `message ${["FAILED", "LOST"].includes(job.status) ? "problem-text" : ""}`.trim());
  showStatus(badge, job);
  const output = job.spec.output ? outputOf(job) : null;
  setFacts(byId("facts"), [
    ["Status", badge.cloneNode(true)], ["Time", runningTime(job, nowMs())], ["Attempt", String(job.attempt)],
    ["Cluster", job.cluster], ["Owner", `${job.owner}, team ${job.team}`], ["Accepted", when(job.accepted)],
    ["Started", when(job.started)], ["Ended", when(job.ended)], ["Output", output],
    ["Fingerprint", el("code", { title: job.fingerprint, text: job.fingerprint.slice(0, 16) })],
  ]);
  setText(byId("spec"), yaml(job.spec));
  showAttempts(job);
  byId("stop").hidden = !mayAct || ENDED.has(job.status);
  byId("stop").disabled = job.stop_asked;
  byId("retry").hidden = !mayAct || !ENDED.has(job.status);
  if (status && status !== job.status) announce(`${job.name} is now ${job.status}`);
  status = job.status;
  showProgress(job.tasks);
}

/** Where it puts what it makes; once that is there, a way to it. */
function outputOf(job) {
  const text = el("code", {}, breakable(job.spec.output));
  const page = PAGES[job.kind];
  if (job.status !== "SUCCEEDED" || !page) return text;
  return el("a", { href: `${page}?${new URLSearchParams({ url: job.spec.output })}` }, text);
}

function showAttempts(job) {
  byId("attempts-section").hidden = job.attempts.length < 2;
  const fill = (line, each) => {
    const [link, state, rest] = line.children;
    setText(link, `Attempt ${each.attempt}`);
    setAttribute(link, "href", `job?id=${encodeURIComponent(each.id)}`);
    setAttribute(link, "aria-current", each.id === job.id ? "page" : null);
    showStatus(state, each);
    setText(rest, [ago(nowMs() - Date.parse(each.accepted)), runningTime(each, nowMs()), each.owner].filter(Boolean).join(", "));
  };
  const make = () => el("li", {}, el("a"), el("span"), el("span", { class: "muted" }));
  reconcile(byId("attempts"), [...job.attempts].reverse(), (each) => each.id, make, fill);
}

function showProgress(tasks) {
  byId("progress").hidden = !tasks.length;
  showTasks(byId("tasks"), tasks);
}

function showSummary(summary) {
  byId("summary").hidden = false;
  const made = summary.collection;
  setFacts(byId("results"), [
    ["Took", summary.seconds?.total ? duration(summary.seconds.total * 1000) : ""],
    ["Collected", made?.tokens ? `${count(made.tokens)} tokens, ${bytes(made.bytes)}` : ""],
    ["Rate", made?.tokens_per_s ? `${count(made.tokens_per_s)} tokens/s` : ""],
    ["Retries", made?.retries ? String(made.retries) : ""],
    ["Workers lost", made?.worker_deaths ? String(made.worker_deaths) : ""],
  ]);
  const rows = Object.entries(summary.dictionaries || {});
  byId("figures").hidden = !rows.length;
  if (!rows.length || byId("figures").children.length) return;
  const head = ["Dictionary", "FVU", "L0", "Dead", "CE recovered"];
  const cells = rows.map(([name, facts]) => {
    const found = "fvu" in facts ? facts : facts.training || {};
    const values = ["fvu", "l0", "dead_share", "ce_recovered"].map((key) => el("td", { class: "number", text: figure(found[key]) }));
    return el("tr", {}, el("th", { scope: "row", text: name }), ...values);
  });
  const titles = head.map((text, place) => el("th", { scope: "col", class: place ? "number" : null, text }));
  byId("figures").append(el("thead", {}, el("tr", {}, ...titles)), el("tbody", {}, ...cells));
}

/** Until the job has ended, and once after that. */
async function lookAtCourse(signal) {
  if (isCourseWhole) return 0;
  const isLast = ENDED.has(status);
  const found = await get(`${path}/figures`, {}, signal);
  byId("stages-section").hidden = !showStages(byId("stages"), found.stages);
  byId("curves-section").hidden = !drawCurves(byId("curves"), found);
  isCourseWhole = isLast;
  return 10000;
}

/** Asks before it acts; what it did, or why not, is shown and said. */
function act(button, { title, text, yes, go }) {
  const dialog = byId("confirm");
  byId(button).addEventListener("click", () => {
    setText(byId("confirm-title"), title);
    setText(byId("confirm-text"), text);
    setText(byId("confirm-yes"), yes);
    byId("confirm-yes").onclick = async () => {
      dialog.close();
      byId(button).disabled = true;
      try {
        await go();
      } catch (error) {
        complain(error);
      } finally {
        byId(button).disabled = false;
      }
    };
    dialog.showModal();
    byId("confirm-no").focus();
  });
}

async function stop() {
  const job = await post(`${path}/stop`);
  announce(ENDED.has(job.status) ? `${job.name} is ${job.status}` : `${job.name} was asked to end`);
  again();
}

async function retry() {
  const job = await post(`${path}/retry`);
  location.assign(`job?id=${encodeURIComponent(job.id)}`);
}

begin((who) => {
  mayAct = who.role !== "viewer";
  byId("confirm-no").addEventListener("click", () => byId("confirm").close());
  act("stop", { title: "Stop this job?", text: `${id} ends. What it has committed is kept, and a retry goes on from there.`, yes: "Stop it", go: stop });
  act("retry", { title: "Retry this job?", text: `A further attempt of ${id} goes on from what was committed.`, yes: "Retry it", go: retry });
  byId("copy").addEventListener("click", async () => {
    await navigator.clipboard.writeText(byId("spec").textContent);
    announce("Spec copied");
  });
  again = watch(async (signal) => {
    const job = await get(path, {}, signal);
    show(job);
    return ENDED.has(job.status) ? 15000 : 2000;
  });
  watch(lookAtCourse, { isQuiet: true });
  const write = writeTo(byId("log"), () => byId("follow").checked);
  const leaving = new AbortController();
  addEventListener("pagehide", () => leaving.abort());
  follow(id, {
    signal: leaving.signal,
    state: (words) => setText(byId("log-state"), words),
    on: (text, isAnew) => {
      write(text, isAnew);
      log.add(text, isAnew);
      if (log.summary) showSummary(log.summary);
    },
  });
});
