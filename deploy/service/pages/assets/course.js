/* The course of a job: where the time of a collection goes, and the curves of trainings, as SVG. */

import { el, reconcile, setAttribute, setText } from "./dom.js";
import { scaleOf, shape } from "./plane.js";
import { figure, short } from "./words.js";

const BOX = { left: 58, right: 520, top: 10, bottom: 170 };
const COLOURS = 8;
const TITLES = { fvu: "FVU", l0: "L0", dead_share: "Share of dead latents", loss: "Loss", held_out_loss: "Held-out loss" };
const BINDS = {
  compute: "the model computes most of the time", copy: "copying from the device binds", encode: "encoding binds",
  storage: "the storage binds", tokens: "reading tokens binds", units: "workers wait for units",
};

/** A table of stages for each store; says whether there is anything. */
export function showStages(place, several) {
  reconcile(place, several, (each) => each.store, () => el("div"), (block, each) => block.replaceChildren(...stagesOf(each)));
  return several.length > 0;
}

function stagesOf({ store, units, busy_s: busy, stalls_s: stalls, binds }) {
  const stages = Object.keys(busy);
  const most = Math.max(...Object.values(busy), ...Object.values(stalls)) || 1;
  const bar = (seconds, kind) => el("td", { class: "number" }, `${figure(seconds)} s`,
    el("meter", { class: kind, min: 0, max: most, value: seconds, "aria-label": `${Math.round((100 * seconds) / most)} % of the most` }));
  const row = (stage) => el("tr", {}, el("th", { scope: "row", text: stage }), bar(busy[stage], "busy"), bar(stalls[stage] || 0, "stall"));
  const head = ["Stage", "Busy", "Waited"].map((text, column) => el("th", { scope: "col", class: column ? "number" : null, text }));
  const words = `${store}: the last ${units === 1 ? "unit" : `${units} units`}, seconds of all workers${BINDS[binds] ? `; ${BINDS[binds]}` : ""}`;
  const table = el("table", { class: "list" }, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...stages.map(row)));
  return [el("p", { class: "note", text: words }), el("div", { class: "scroll", role: "region", "aria-label": "Stages", tabindex: "0" }, table)];
}

/** A figure for each quantity, with a line for each dictionary; says whether there is anything. */
export function drawCurves(place, { curves, rows_per_s: rates }) {
  const nameOf = ({ job, dictionary }) => (dictionary && Object.keys(rates).length > 1 ? `${job}/${dictionary}` : dictionary || job);
  const names = curves.map(nameOf);
  const keys = Object.keys(TITLES).filter((key) => curves.some((curve) => curve.values[key]));
  const lines = (key) => curves.flatMap(({ steps, values }, order) => {
    const points = steps.map((step, at) => [step, values[key]?.[at] ?? null]).filter(([, value]) => value !== null);
    return points.length ? [{ name: names[order], colour: order % COLOURS, points }] : [];
  });
  reconcile(place, keys, (key) => key, makeFigure, (block, key) => fillFigure(block, TITLES[key], lines(key), key === "dead_share"));
  return keys.length > 0;
}

function makeFigure() {
  const svg = shape("svg", { class: "curve", viewBox: "0 0 540 212", role: "img" });
  return el("figure", {}, el("figcaption"), svg, el("ul", { class: "legend" }));
}

function fillFigure(block, title, lines, isLinear) {
  const [caption, svg, legend] = block.children;
  setText(caption, `${title}${draw(svg, lines, isLinear) ? ", logarithmic scale" : ""}`);
  const last = lines.map((line) => `${line.name} ${figure(line.points.at(-1)[1])}`);
  setAttribute(svg, "aria-label", `${title} over steps; last: ${last.join(", ")}`);
  legend.replaceChildren(...lines.map((line, order) => el("li", {}, el("span", { class: `key s${line.colour}` }), last[order])));
}

/** Says whether the scale is logarithmic. */
function draw(svg, lines, isLinear) {
  const points = lines.flatMap((line) => line.points);
  const x = scaleOf(points.map(([step]) => step), BOX.left, BOX.right, { isLinear: true });
  const y = scaleOf(points.map(([, value]) => value), BOX.bottom, BOX.top, { isLinear });
  svg.replaceChildren();
  for (const tick of x.ticks) {
    svg.append(shape("text", { x: x.at(tick), y: BOX.bottom + 17, "text-anchor": "middle" }, short(tick)));
  }
  const ticks = y.ticks.length > 8 ? y.ticks.filter((tick) => Math.abs(Math.log10(tick) % 1) < 1e-9) : y.ticks;
  for (const tick of ticks) {
    svg.append(shape("line", { class: "grid", x1: BOX.left, x2: BOX.right, y1: y.at(tick), y2: y.at(tick) }));
    svg.append(shape("text", { x: BOX.left - 8, y: y.at(tick) + 4, "text-anchor": "end" }, short(tick)));
  }
  svg.append(shape("text", { class: "axis", x: (BOX.left + BOX.right) / 2, y: BOX.bottom + 36, "text-anchor": "middle" }, "steps"));
  for (const { colour, points: own } of lines) {
    const places = own.map(([step, value]) => `${x.at(step).toFixed(1)},${y.at(value).toFixed(1)}`);
    svg.append(shape("polyline", { class: `line s${colour}`, points: places.join(" ") }));
    if (own.length === 1) svg.append(shape("circle", { class: `dot s${colour}`, cx: x.at(own[0][0]), cy: y.at(own[0][1]), r: 3 }));
  }
  return y.isLog;
}
