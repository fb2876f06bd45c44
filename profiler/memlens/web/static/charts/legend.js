/** What each category holds at the instant that is looked at; a click filters by it. */

import { el, fill } from "../dom.js";
import { formatBytes, formatCount, formatShare } from "../units.js";

export class Legend {
  /** @param kinds the series, bottom first. @param onChoose told a category's key, or "" for all. */
  constructor(kinds, onChoose) {
    this.kinds = kinds;
    this.title = el("div.legend-title");
    this.place = el("div.legend-place");
    this.rows = new Map();
    const body = el("div.legend-rows", { role: "group", "aria-label": "Categories" });
    for (const kind of [...kinds].reverse()) {
      const value = el("span.legend-value");
      const share = el("span.legend-share");
      const bar = el("span.legend-bar", { style: { background: kind.colour } });
      const row = el(
        "button.legend-row",
        {
          type: "button",
          "aria-pressed": "false",
          "data-category": kind.key,
          title: `Show only ${kind.label}`,
          onclick: () => onChoose(row.getAttribute("aria-pressed") === "true" ? "" : kind.key),
        },
        swatch(kind),
        el("span.legend-label", {}, kind.label),
        value,
        share,
        bar,
      );
      body.append(row);
      this.rows.set(kind.key, { row, value, share, bar });
    }
    this.totals = el("dl.legend-totals");
    this.node = el("aside.legend", { "aria-label": "Values at the cursor" }, this.title, this.place, body, this.totals);
  }

  /** @param entry `{allocated, reserved, categories}`; `known` are the keys that occur at all. */
  show(title, place, entry, { known, category, capacity = null }) {
    this.title.textContent = title;
    this.place.textContent = place;
    this.node.dataset.time = String(entry.time);
    for (const [key, { row, value, share, bar }] of this.rows) {
      const bytes = entry.categories[key] ?? 0;
      row.hidden = !known.has(key) && key !== category;
      row.dataset.bytes = String(bytes);
      row.setAttribute("aria-pressed", String(key === category));
      row.classList.toggle("dim", Boolean(category) && key !== category);
      value.textContent = formatBytes(bytes);
      value.title = `${formatCount(bytes)} bytes`;
      share.textContent = formatShare(bytes, entry.allocated);
      bar.style.width = `${entry.allocated ? (100 * bytes) / entry.allocated : 0}%`;
    }
    fill(
      this.totals,
      this.total("allocated", entry.allocated, "line-allocated"),
      entry.reserved === null ? null : this.total("reserved", entry.reserved, "line-reserved"),
      capacity === null ? null : this.total("capacity", capacity, "line-capacity"),
    );
  }

  total(label, bytes, look) {
    return el(
      "div",
      { "data-total": label, "data-bytes": String(bytes) },
      el("dt", {}, el(`span.line.${look}`), label),
      el("dd", { title: `${formatCount(bytes)} bytes` }, formatBytes(bytes)),
    );
  }
}

/** The colour of a category, with its letter for those who do not see it. */
export function swatch(kind) {
  return el("span.swatch", { style: { background: kind.colour }, "aria-hidden": "true" });
}
