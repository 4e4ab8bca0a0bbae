/* How far the tasks of a running job are. */

import { el, reconcile, setAttribute, setText } from "./dom.js";
import { bytes, duration, short } from "./words.js";

/** Rate, time left and what it waits for, as far as they are known. */
export function pace(task) {
  return [
    task.rate_per_s === null ? "" : `${short(task.rate_per_s)} ${task.unit}/s`,
    task.bytes_per_s === null ? "" : `${bytes(task.bytes_per_s)}/s`,
    task.left_s === null ? "" : `${duration(task.left_s * 1000)} left`,
    task.waits,
  ].filter(Boolean).join(", ");
}

export const share = (task) => (task.total ? Math.min(1, task.done / task.total) : null);

/** Fills a <progress>, which is hidden where the end is not known. */
export function fillBar(bar, task) {
  const part = task ? share(task) : null;
  setAttribute(bar, "value", part === null ? null : String(part));
  setAttribute(bar, "aria-label", task ? task.name : null);
  bar.hidden = part === null;
}

const make = () => el("li", {}, el("span", { class: "task" }), el("progress", { max: 1 }), el("span", { class: "muted" }));

/** A line for each task. */
export function showTasks(list, tasks) {
  reconcile(list, tasks, (task) => task.name, make, (line, task) => {
    const [name, bar, rest] = line.children;
    setText(name, task.name);
    fillBar(bar, task);
    const amounts = `${short(task.done)}${task.total ? ` of ${short(task.total)}` : ""} ${task.unit}`;
    setText(rest, [amounts, pace(task)].filter(Boolean).join(", "));
  });
}
