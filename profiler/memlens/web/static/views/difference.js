/** What differs between two runs at their peaks, by category and by module. */

import { swatch } from "../charts/legend.js";
import { breakable, el, fill, table } from "../dom.js";
import { formatBytes, formatCount } from "../units.js";
import { sum } from "./module_tree.js";

const MOST_ROWS = 100;
const MOST_PARTS = 3;

export class DifferenceTables {
  constructor(kinds) {
    this.kinds = kinds;
    this.categories = el("tbody");
    this.modules = el("tbody");
    this.foot = el("span.table-count");
    this.node = el(
      "div.view",
      {},
      card("Difference by category", "each run at its own peak", "by-category", "Category", this.categories),
      card("Difference by module", "the largest first", "by-module", "Module", this.modules, this.foot),
    );
  }

  kind(key) {
    return this.kinds.find((kind) => kind.key === key);
  }

  /** @param difference the answer to the question of that name. */
  show(difference) {
    const { categories, modules } = difference;
    const rows = categories
      .map(({ key, a: before, b: after }) => ({ kind: this.kind(key), before, after }))
      .filter(({ before, after }) => before || after);
    const most = Math.max(1, ...rows.map(({ before, after }) => Math.abs(after - before)));
    const mostBytes = Math.max(1, ...rows.flatMap(({ before, after }) => [before, after]));
    fill(
      this.categories,
      rows
        .reverse()
        .map(({ kind, before, after }) =>
          el(
            "tr",
            { "data-category": kind.key },
            el("td.nowrap", {}, swatch(kind), kind.label),
            ...this.amounts(before, after),
            el("td.wide", {}, pair(before, after, mostBytes, kind.colour)),
            el("td.wide", {}, diverging(after - before, most)),
          ),
        ),
    );
    const mostOfModules = Math.max(1, ...modules.map((row) => Math.abs(sum(row.b) - sum(row.a))));
    const different = modules.filter((row) => this.parts(row).length);
    fill(
      this.modules,
      different.slice(0, MOST_ROWS).map((row) => {
        const [before, after] = [sum(row.a), sum(row.b)];
        return el(
          "tr",
          { "data-module": row.module },
          el("td", {}, breakable(row.module || "outside of modules")),
          ...this.amounts(before, after),
          el("td.parts-of-change", {}, this.parts(row)),
          el("td.wide", {}, diverging(after - before, mostOfModules)),
        );
      }),
    );
    const left = difference.left_out;
    const alike = modules.length - different.length;
    this.foot.textContent = [
      different.length > MOST_ROWS || left?.count
        ? `The ${formatCount(Math.min(MOST_ROWS, different.length))} largest differences of ${formatCount(different.length + (left?.count ?? 0))}.`
        : "",
      alike ? `${formatCount(alike)} modules hold the same in both.` : "",
    ]
      .filter(Boolean)
      .join(" ");
  }

  amounts(before, after) {
    const change = after - before;
    return [
      el("td.number.nowrap", { "data-bytes": String(before) }, formatBytes(before)),
      el("td.number.nowrap", { "data-bytes": String(after) }, formatBytes(after)),
      el(
        `td.number.nowrap.${change > 0 ? "more" : change < 0 ? "less" : "same"}`,
        { "data-bytes": String(change) },
        change ? formatBytes(change, true) : "=",
      ),
    ];
  }

  /** Which categories make up a module's difference. */
  parts(row) {
    return this.kinds
      .map((kind) => ({ kind, change: (row.b[kind.key] ?? 0) - (row.a[kind.key] ?? 0) }))
      .filter(({ change }) => change)
      .sort((x, y) => Math.abs(y.change) - Math.abs(x.change))
      .slice(0, MOST_PARTS)
      .map(({ kind, change }) => el("span.chip", {}, swatch(kind), `${kind.label} ${formatBytes(change, true)}`));
  }
}

function card(title, hint, look, first, body, foot = null) {
  const heads = [first, "Baseline", "Variant", "Difference", "", ""];
  return el(
    "section.card",
    { "aria-label": title },
    el("header.card-head", {}, el("h2", {}, title), el("span.window-text", {}, hint)),
    el("div.table-scroll", {}, table(look, heads, body)),
    foot ? el("footer.card-foot", {}, foot) : null,
  );
}

function pair(before, after, most, paint) {
  const bar = (bytes, kind) =>
    el(`span.pair-bar.${kind}`, { style: { width: `${(100 * bytes) / most}%`, background: paint } });
  return el("span.pair", {}, bar(before, "before"), bar(after, "after"));
}

/** A bar to the right for more, to the left for less. */
function diverging(change, most) {
  const share = (50 * Math.abs(change)) / most;
  return el(
    "span.diverging",
    {},
    el(`span.${change > 0 ? "more" : "less"}`, {
      style: { width: `${share}%`, left: change > 0 ? "50%" : `${50 - share}%` },
    }),
  );
}
