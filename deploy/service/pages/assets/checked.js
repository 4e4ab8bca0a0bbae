/* How the last check of a store went, in words. */

import { el } from "./dom.js";
import { ago, count, moment } from "./words.js";

/** For a cell of a table: a word with a shape of its own, and when. */
export function checkedCell(check) {
  if (!check) return [el("span", { class: "muted", text: "never" })];
  const word = check.num_problems ? `${count(check.num_problems)} ${check.num_problems === 1 ? "problem" : "problems"}` : "sound";
  return [
    el("span", { class: `status ${check.num_problems ? "unsound" : "sound"}`, text: word }),
    el("time", { class: "why", datetime: check.checked, title: moment(check.checked), text: ago(Date.now() - Date.parse(check.checked)) }),
  ];
}

/** A sentence. */
export function checkedWords(check) {
  const found = check.num_problems ? `${count(check.num_problems)} ${check.num_problems === 1 ? "problem" : "problems"} in` : "No problems in";
  return `${found} ${count(check.objects)} objects, ${moment(check.checked)}, asked for by ${check.checked_by}.`;
}
