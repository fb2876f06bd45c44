/** A bar of categories: what something consists of. */

import { el } from "../dom.js";
import { formatBytes } from "../units.js";

/** @param whole the bytes of a full bar. */
export function composition(kinds, categories, whole) {
  return el(
    "span.composition",
    { role: "img", "aria-label": words(kinds, categories), title: words(kinds, categories) },
    kinds
      .filter(({ key }) => categories[key])
      .map(({ key, colour }) =>
        el("span", {
          style: { width: `${(100 * categories[key]) / Math.max(whole, 1)}%`, background: colour },
          "data-category": key,
        }),
      ),
  );
}

function words(kinds, categories) {
  return kinds
    .filter(({ key }) => categories[key])
    .map(({ key, label }) => `${label} ${formatBytes(categories[key])}`)
    .join(", ");
}
