/* The status of a job: a word with a shape of its own, so that colour is never all there is. */

import { setAttribute, setText } from "./dom.js";
import { ENDED } from "./words.js";

export function showStatus(element, job) {
  const isStopping = job.stop_asked && !ENDED.has(job.status);
  setAttribute(element, "class", `status ${job.status.toLowerCase()}`);
  setText(element, isStopping ? `${job.status}, stopping` : job.status);
}
