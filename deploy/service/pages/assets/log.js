/* A job's log: followed as it is written, and read for what it says of progress and result. */

import { ApiError, send } from "./api.js";

const MOST = 1_000_000;
const AGAIN_MS = 3000;
/** `collect: 1.23M/4.00M tokens, 12k tokens/s, 2:03 left`, the form of workers/progress.py. */
const TASK = /^([\w .,'()-]{1,80}): ([\d.]+)([kMGT]?)(?:\/([\d.]+)([kMGT]?))? ([A-Za-z]+)((?:, [^,]+)*)$/;
const WAITED = /: (waited for .+ of the last \d+ s|waits for .+ no more)$/;
const SIZES = { "": 1, k: 1e3, M: 1e6, G: 1e9, T: 1e12 };

/** Follows a log until its job has ended, beginning anew when the answer breaks off. `on(text, isAnew)` gets what
 *  comes, `state(words)` how it stands. */
export async function follow(id, { on, state, signal }) {
  for (;;) {
    try {
      state("waiting for it");
      const answer = await send(`jobs/${encodeURIComponent(id)}/logs`, { query: { follow: true }, signal });
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let isAnew = true;
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        on(value, isAnew);
        if (isAnew) state("following");
        isAnew = false;
      }
      state("complete");
      return;
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error instanceof ApiError && ![0, 409, 429, 502, 503].includes(error.status)) {
        state(error.message);
        return;
      }
      state("broken off, trying again");
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    if (signal.aborted) return;
  }
}

/** Text at the end of a <pre>, of which the oldest goes when it grows too long; it scrolls along if it is told to. */
export function writeTo(pre, isFollowing) {
  let length = 0;
  return (text, isAnew) => {
    if (isAnew) {
      pre.replaceChildren();
      length = 0;
    }
    pre.append(document.createTextNode(text));
    length += text.length;
    while (length > MOST && pre.childNodes.length > 1) {
      length -= pre.firstChild.length;
      pre.firstChild.remove();
    }
    if (isFollowing()) pre.scrollTop = pre.scrollHeight;
  };
}

/** What a log says so far, a line at a time. */
export class LogReader {
  constructor() {
    this.tasks = new Map();
    this.waits = "";
    this.summary = null;
    this.rest = "";
  }

  add(text, isAnew) {
    if (isAnew) this.rest = "";
    const lines = (this.rest + text).split(/\r?\n/);
    this.rest = lines.pop();
    for (const line of lines) this.line(line);
  }

  line(line) {
    const facts = line.startsWith("{") ? parsed(line) : null;
    if (facts?.dictionaries && facts.status) {
      this.summary = facts;
      return;
    }
    const said = facts ? String(facts.message ?? "") : line;
    const found = TASK.exec(said);
    if (found) {
      const [, name, done, doneSize, total, totalSize, unit, more] = found;
      const share = total ? (Number(done) * SIZES[doneSize]) / (Number(total) * SIZES[totalSize]) : null;
      const amounts = `${done}${doneSize}${total ? ` of ${total}${totalSize}` : ""} ${unit}`;
      this.tasks.set(name, { name, share, amounts, more: more.slice(2) });
    } else if (WAITED.test(said)) {
      this.waits = said.includes("no more") ? "" : said;
    }
  }
}

function parsed(line) {
  try {
    const found = JSON.parse(line);
    return typeof found === "object" ? found : null;
  } catch {
    return null;
  }
}
