/* Elements from data. Text is always text: nothing here reads markup. */

export const byId = (id) => document.getElementById(id);

/** An element; `text` becomes its text, null and false leave an attribute out, children are elements or texts. */
export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "text") made.textContent = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** Changes a text only if it is another, so that selections stay and nothing flickers. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setAttribute(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

/** Makes the children those of `items`, one each, keeping the elements whose key stays, with their focus. */
export function reconcile(parent, items, keyOf, create, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let child = old.get(key);
    if (child) old.delete(key);
    else {
      child = create(item);
      child.dataset.key = key;
    }
    update(child, item);
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
  }
  for (const child of old.values()) child.remove();
}

/** Name and value pairs of a <dl>; values are texts or elements. */
export function setFacts(list, pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== "" && value !== undefined);
  reconcile(list, shown, ([name]) => name, ([name]) => el("div", {}, el("dt", { text: name }), el("dd")), (row, [, value]) => {
    const place = row.lastElementChild;
    if (typeof value === "string") setText(place, value);
    else if (!place.firstElementChild?.isEqualNode(value)) place.replaceChildren(value);
  });
}

/** A long path or name, which may break after its separators. */
export function breakable(text) {
  const parts = (text || "").split(/(?<=[/.,_@])/);
  return el("span", {}, ...parts.flatMap((part, place) => (place ? [el("wbr"), part] : [part])));
}
