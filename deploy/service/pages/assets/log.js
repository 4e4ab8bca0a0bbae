/* A job's log: followed as it is written, and read for the result at its end. */

import { ApiError, send } from "./api.js";

const MOST = 1_000_000;
const AGAIN_MS = 3000;
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

/** Finds the result that a job writes at its end, a line of JSON. */
export class LogReader {
  constructor() {
    this.summary = null;
    this.rest = "";
  }

  add(text, isAnew) {
    if (isAnew) this.rest = "";
    const lines = (this.rest + text).split(/\r?\n/);
    this.rest = lines.pop();
    for (const line of lines) {
      const facts = line.startsWith("{") ? parsed(line) : null;
      if (facts?.dictionaries && facts.status) this.summary = facts;
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
