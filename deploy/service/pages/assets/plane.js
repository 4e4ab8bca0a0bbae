/* Dictionaries on the plane of sparsity (L0) and fidelity (FVU), as SVG. The table beside it has the same figures. */

import { figure } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const BOX = { left: 66, right: 544, top: 14, bottom: 372 };
const MOST_NAMES = 14;

/** An element of SVG. */
export function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** A scale over the values: logarithmic where they span more than a factor of 5, else linear; with its ticks. */
export function scaleOf(values, from, to, { isLinear = false } = {}) {
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const isLog = !isLinear && least > 0 && most / least > 5;
  const turn = isLog ? Math.log10 : (value) => value;
  let [low, high] = [turn(least), turn(most)];
  const room = (high - low) * 0.1 || Math.abs(high) * 0.2 || 0.5;
  [low, high] = [isLog || low < 0 ? low - room : Math.max(0, low - room), high + room];
  const at = (value) => from + ((turn(value) - low) / (high - low)) * (to - from);
  return { at, isLog, ticks: isLog ? logTicks(10 ** low, 10 ** high) : linearTicks(low, high) };
}

function linearTicks(low, high) {
  const raw = (high - low) / 6;
  const size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((factor) => factor * size >= raw) * size;
  const ticks = [];
  for (let place = Math.ceil(low / step); place * step <= high; place += 1) ticks.push(Number((place * step).toPrecision(10)));
  return ticks;
}

function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power += 1) {
    for (const factor of [1, 2, 5]) ticks.push(Number((factor * 10 ** power).toPrecision(10)));
  }
  return ticks.filter((tick) => tick >= low && tick <= high);
}

/** `points`: `{key, name, l0, fvu, colour, isHeldOut}`. Hollow points are of training. */
export function draw(svg, points) {
  svg.replaceChildren();
  if (!points.length) return "No dictionary has both figures.";
  const x = scaleOf(points.map((point) => point.l0), BOX.left, BOX.right);
  const y = scaleOf(points.map((point) => point.fvu), BOX.bottom, BOX.top);
  for (const tick of x.ticks) {
    svg.append(shape("line", { class: "grid", x1: x.at(tick), x2: x.at(tick), y1: BOX.top, y2: BOX.bottom }));
    svg.append(shape("text", { x: x.at(tick), y: BOX.bottom + 17, "text-anchor": "middle" }, String(tick)));
  }
  for (const tick of y.ticks) {
    svg.append(shape("line", { class: "grid", x1: BOX.left, x2: BOX.right, y1: y.at(tick), y2: y.at(tick) }));
    svg.append(shape("text", { x: BOX.left - 8, y: y.at(tick) + 4, "text-anchor": "end" }, String(tick)));
  }
  const middle = (BOX.top + BOX.bottom) / 2;
  const below = `L0, latents active in a row${x.isLog ? " (log)" : ""}`;
  svg.append(shape("text", { class: "axis", x: (BOX.left + BOX.right) / 2, y: BOX.bottom + 38, "text-anchor": "middle" }, below));
  svg.append(shape("text", { class: "axis", x: 13, y: middle, "text-anchor": "middle", transform: `rotate(-90 13 ${middle})` }, `FVU${y.isLog ? " (log)" : ""}`));
  for (const point of points) svg.append(mark(point, x.at(point.l0), y.at(point.fvu), points.length <= MOST_NAMES));
  const many = `${points.length} ${points.length === 1 ? "dictionary" : "dictionaries"}`;
  return `${many}. Filled points are held out, hollow ones the last training step. The table has the figures.`;
}

function mark(point, x, y, hasName) {
  const group = shape("g", { class: `point s${point.colour}${point.isHeldOut ? "" : " hollow"}`, "data-key": point.key });
  group.append(shape("title", {}, `${point.name}: L0 ${figure(point.l0)}, FVU ${figure(point.fvu)}`), shape("circle", { cx: x, cy: y, r: 6 }));
  const isLeft = x > (BOX.left + BOX.right) / 2;
  if (hasName) group.append(shape("text", { x: x + (isLeft ? -11 : 11), y: y + 4, "text-anchor": isLeft ? "end" : "start" }, point.name));
  return group;
}

/** Marks one point, or none. */
export function point(svg, key) {
  for (const group of svg.querySelectorAll(".point")) group.classList.toggle("chosen", group.dataset.key === key);
}
