/* Numbers and times in words. */

export const ENDED = new Set(["SUCCEEDED", "FAILED", "STOPPED", "LOST"]);

/** `1:02:03` or `2:03`. */
export function duration(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  const [hours, minutes, rest] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  const two = (value) => String(value).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

/** `5 min ago`. */
export function ago(ms) {
  const seconds = Math.max(0, ms / 1000);
  for (const [unit, size] of [["day", 86400], ["h", 3600], ["min", 60]]) {
    const count = Math.floor(seconds / size);
    if (count) return `${count} ${unit}${unit === "day" && count > 1 ? "s" : ""} ago`;
  }
  return "just now";
}

/** How long a job has run or did run; nothing before it began. */
export function runningTime(job, nowMs) {
  if (!job.started) return "";
  const end = job.ended ? Date.parse(job.ended) : nowMs;
  return duration(end - Date.parse(job.started));
}

export const moment = (iso) => new Date(iso).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });

export const count = (value) => Math.round(value).toLocaleString("en");

/** Three figures: 0.0123, 1.23, 123. */
export function figure(value) {
  if (typeof value !== "number" || !Number.isFinite(value)) return "";
  if (value !== 0 && (Math.abs(value) >= 1e6 || Math.abs(value) < 1e-3)) return value.toExponential(2);
  return Math.abs(value) >= 1000 ? count(value) : String(Number(value.toPrecision(3)));
}

/** `1.23M`: three figures and a decimal prefix. */
export function short(value) {
  const units = ["", "k", "M", "G", "T"];
  let place = 0;
  while (value >= 999.5 && place < units.length - 1) {
    value /= 1000;
    place += 1;
  }
  return `${Number(value.toPrecision(3))}${units[place]}`;
}

export function bytes(value) {
  if (value === null || value === undefined) return "";
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let place = 0;
  while (value >= 999.5 && place < units.length - 1) {
    value /= 1000;
    place += 1;
  }
  return `${place ? Number(value.toPrecision(3)) : value} ${units[place]}`;
}
