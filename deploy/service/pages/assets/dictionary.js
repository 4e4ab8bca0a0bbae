/* One dictionary: its record, what evaluations measured of it, and their reports in a frame that reaches nothing. */

import { get, send } from "./api.js";
import { byId, el, setFacts, setText } from "./dom.js";
import { wanted } from "./find.js";
import { begin, complain } from "./page.js";
import { count, figure } from "./words.js";
import { yaml } from "./yaml.js";

const url = wanted().get("url") || "";
const code = (text) => (text ? el("code", { title: text, text: text.slice(0, 24) }) : null);
const points = (widths) => Object.entries(widths).map(([name, width]) => `${name} (${width})`).join(", ");
let saved = "";

function show(record) {
  const { spec } = record;
  setText(byId("name"), spec.name);
  document.title = `${spec.name} - Headworks`;
  setFacts(byId("facts"), [
    ["Reads", points(record.d_source)], ["Predicts", points(record.d_target)], ["Latents", count(spec.num_latents)],
    ["Activation", spec.activation.kind], ["Steps", count(record.steps)], ["Rows seen", count(record.tokens)],
  ]);
  setFacts(byId("metrics"), Object.entries(record.metrics).map(([name, value]) => [name, figure(value)]));
  const versions = Object.entries(record.versions).map(([name, version]) => `${name} ${version}`).join(", ");
  const store = record.train_spec?.store;
  setFacts(byId("provenance"), [
    ["Store", typeof store === "string" ? el("a", { href: `store?${new URLSearchParams({ url: store })}` }, el("code", { text: store })) : null],
    ["Fingerprint of the store", code(record.store_fingerprint)], ["Token table", code(record.table_fingerprint)],
    ["Weights, SHA-256", code(record.weights_sha256)], ["Made with", versions],
  ]);
  setText(byId("spec"), yaml(spec));
  setText(byId("train"), yaml(record.train_spec));
}

/** Evaluations lie at or below the place that the list was of, or beside the folder of dictionaries. */
async function showEvaluations() {
  const place = wanted().get("place") || url.split("/").slice(0, -2).join("/");
  const found = await get("comparison", { url: place, limit: 1000 });
  const evaluations = found.dictionaries.find((row) => row.url === url)?.evaluations || [];
  byId("no-evaluation").hidden = evaluations.length > 0;
  setText(byId("no-evaluation"), `None of these weights at or below ${place}.`);
  byId("evaluations").replaceChildren(...evaluations.map((each) => {
    const list = el("dl", { class: "facts" });
    setFacts(list, [["FVU", figure(each.fvu)], ["L0", figure(each.l0)], ["Dead", figure(each.dead_share)], ["CE recovered", figure(each.ce_recovered)], ["Rows", `${count(each.rows)}, ${each.split.replace("_", " ")}`]]);
    const button = each.has_report ? el("button", { type: "button", text: "Show the report" }) : null;
    button?.addEventListener("click", () => showReport(each.url));
    return el("li", { class: "panel" }, el("div", { class: "heading" }, el("code", { text: each.url }), button), list);
  }));
}

async function showReport(from) {
  try {
    const text = await (await send("report", { query: { url: from } })).text();
    URL.revokeObjectURL(saved);
    saved = URL.createObjectURL(new Blob([text], { type: "text/html" }));
    byId("save").href = saved;
    // Its scripts run in a frame of no origin: no token, no storage, no requests.
    const frame = el("iframe", { src: "report-frame", sandbox: "allow-scripts", title: `Report of ${from}` });
    const hand = (event) => {
      if (event.source !== frame.contentWindow || event.data !== "ready") return;
      removeEventListener("message", hand);
      frame.contentWindow.postMessage(text, "*");
    };
    addEventListener("message", hand);
    byId("report").replaceChildren(frame);
    byId("report-section").hidden = false;
    byId("report-section").scrollIntoView();
  } catch (error) {
    complain(error);
  }
}

begin(async () => {
  setText(byId("url"), url);
  const place = wanted().get("place");
  if (place) byId("back").href = `dictionaries?${new URLSearchParams({ url: place })}`;
  byId("close").addEventListener("click", () => {
    byId("report").replaceChildren();
    byId("report-section").hidden = true;
  });
  try {
    show((await get("dictionary", { url }))[0]);
    await showEvaluations();
  } catch (error) {
    setText(byId("no-evaluation"), "Not known.");
    complain(error);
  }
});
