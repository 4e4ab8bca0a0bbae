/* JSON values as YAML, for reading; whatever could be read as something else is quoted. */

const PLAIN = /^[A-Za-z_/{.][A-Za-z0-9_./{}@+*-]*$/;
const WORDS = /^(true|false|yes|no|on|off|null|y|n|~|\.nan|[-+.]?\.?inf|\.\d.*)$/i;

function scalar(value) {
  if (typeof value !== "string") return String(JSON.stringify(value));
  return PLAIN.test(value) && !WORDS.test(value) && !value.startsWith("{") ? value : JSON.stringify(value);
}

const isTree = (value) => typeof value === "object" && value !== null && Object.keys(value).length > 0;
const leaf = (value) => (typeof value === "object" && value !== null ? (Array.isArray(value) ? "[]" : "{}") : scalar(value));

export function yaml(value, indent = "") {
  if (!isTree(value)) return `${indent}${leaf(value)}\n`;
  if (Array.isArray(value)) {
    return value.map((item) => (isTree(item) ? `${indent}- ${yaml(item, `${indent}  `).trimStart()}` : `${indent}- ${leaf(item)}\n`)).join("");
  }
  return Object.entries(value)
    .map(([key, item]) => `${indent}${scalar(key)}:${isTree(item) ? `\n${yaml(item, `${indent}  `)}` : ` ${leaf(item)}\n`}`)
    .join("");
}
