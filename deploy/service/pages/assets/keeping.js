/* How long a store is kept, in words. */

export function keeping(store) {
  const said = [];
  if (store.in_use_by.length) said.push(`in use by ${store.in_use_by.join(", ")}`);
  if (store.retention.is_pinned) said.push("pinned");
  else if (store.retention.expires) said.push(`until ${new Date(store.retention.expires * 1000).toLocaleDateString()}`);
  return said.join(", ") || "no limit";
}
