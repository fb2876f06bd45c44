/** The list of what was alive at an instant: the one that was picked, or the peak. */

import { busy, latest } from "../asking.js";
import { swatch } from "../charts/legend.js";
import { breakable, debounce, el, fill, notice, plain, selector } from "../dom.js";
import { formatBytes, formatCount, formatDuration, formatInstant, formatShare } from "../units.js";

const PAGE = 100;
const SEARCH_DELAY_MS = 200;
/** Key of the server's order (none: it cannot be sorted by), what the head says. */
const COLUMNS = [
  ["size", "Size"],
  ["category", "Category"],
  ["name", "Name"],
  ["module", "Module"],
  ["op", "Op"],
  ["step", "Step"],
  ["phase", "Phase"],
  [null, "Rank"],
  ["born", "Born"],
];
const ASCENDING_FIRST = new Set(["category", "name", "module", "op", "phase", "step", "born"]);

export class AliveTable {
  constructor(context) {
    this.context = context;
    this.state = context.state;
    this.open = new Set();
    this.title = el("h2", {}, "Alive");
    this.subtitle = el("span.window-text");
    this.count = el("span.table-count", { role: "status" });
    this.search = el("input.search", {
      type: "search",
      placeholder: "Search names, modules, stacks",
      "aria-label": "Search",
      value: this.state.get("search"),
      oninput: debounce(() => this.state.set({ search: this.search.value, offset: 0 }), SEARCH_DELAY_MS),
    });
    this.filter = el("div.filter.plain");
    this.body = el("tbody");
    this.heads = COLUMNS.map(([key, text]) => this.head(key, text));
    this.table = el("table.data.alive", {}, el("thead", {}, el("tr", {}, this.heads)), this.body);
    this.pages = el("nav.pages", { "aria-label": "Pages" });
    this.message = el("div");
    this.node = el(
      "section.card",
      { "aria-label": "What was alive" },
      el("header.card-head", {}, this.title, this.subtitle, el("div.tools", {}, this.filter, this.search)),
      this.message,
      el("div.table-scroll", {}, this.table),
      el("footer.card-foot", {}, this.count, this.pages),
    );
    this.load = latest(() => this.ask());
  }

  head(key, text) {
    if (!key) return el("th", { scope: "col" }, text);
    return el(
      "th",
      { scope: "col", "data-sort": key },
      el("button", { type: "button", onclick: () => this.sort(key) }, text),
    );
  }

  sort(key) {
    const again = this.state.get("sort") === key;
    const descending = again ? !this.state.get("descending") : !ASCENDING_FIRST.has(key);
    this.state.set({ sort: key, descending, offset: 0 });
  }

  parameters() {
    const { state } = this;
    return {
      run: this.context.run().run,
      rank: this.context.rank().key,
      time: state.get("at"),
      sort: state.get("sort"),
      descending: state.get("descending") ? 1 : 0,
      category: state.get("category"),
      search: state.get("search"),
      offset: state.get("offset"),
      limit: PAGE,
    };
  }

  async ask() {
    const parameters = this.parameters();
    let answer;
    try {
      answer = await busy(this.node, this.context.source.ask("alive", parameters));
    } catch (error) {
      this.told = null;
      fill(this.body);
      return void fill(this.message, notice("The list cannot be shown", error.message, "error"));
    }
    // A run that is still written is asked about again and again; what is the same stays as it is.
    const told = JSON.stringify([answer, parameters]);
    if (told === this.told) return;
    this.told = told;
    fill(this.message);
    this.show(answer, parameters);
  }

  show(answer, { offset, time, category, search }) {
    const place = [formatInstant(answer.time), `step ${answer.step}`, answer.phase, answer.module].filter(Boolean);
    this.title.textContent = time === null ? "Alive at the peak" : "Alive at the picked instant";
    this.subtitle.textContent = plain(
      `${place.join(" · ")} — ${formatCount(answer.count)} blocks, ${formatBytes(answer.allocated_bytes)}`,
    );
    for (const head of this.heads) {
      const key = head.dataset.sort;
      if (!key) continue;
      if (key === this.state.get("sort"))
        head.setAttribute("aria-sort", this.state.get("descending") ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    const kinds = this.context.kinds.map(({ key, label }) => [key, label]);
    fill(
      this.filter,
      selector("Category", [["", "all categories"], ...kinds], category, (value) =>
        this.state.set({ category: value, offset: 0 }),
      ),
    );
    const most = answer.rows.reduce((largest, row) => Math.max(largest, row.size_bytes), 1);
    fill(
      this.body,
      answer.rows.flatMap((row) => this.row(row, answer, most)),
    );
    if (!answer.rows.length) {
      const text =
        category || search
          ? "Nothing that was alive matches the filter. Take it away to see the rest."
          : "Nothing was allocated at this instant. Pick another in the chart.";
      fill(this.message, notice("No blocks", text));
    }
    const { count, size_bytes: size } = answer.matching;
    this.node.dataset.shown = `${answer.time}/${offset}/${count}`;
    this.count.textContent = count
      ? `${formatCount(offset + 1)}–${formatCount(offset + answer.rows.length)} of ${formatCount(count)} blocks, ${formatBytes(size)}`
      : "";
    if (answer.left_out?.count) {
      this.count.textContent += `; ${formatCount(answer.left_out.count)} smaller ones (${formatBytes(answer.left_out.size_bytes)}) are not in this file`;
    }
    fill(
      this.pages,
      count > PAGE
        ? [
            this.turn("‹ Previous", offset - PAGE, offset > 0),
            this.turn("Next ›", offset + PAGE, offset + PAGE < count),
          ]
        : null,
    );
  }

  turn(text, offset, possible) {
    return el("button.tool", { type: "button", disabled: !possible, onclick: () => this.state.set({ offset }) }, text);
  }

  row(row, answer, most) {
    const kind = this.context.kind(row.category);
    const isOpen = this.open.has(row.row);
    const toggle = () => {
      if (!this.open.delete(row.row)) this.open.add(row.row);
      this.show(answer, this.parameters());
      this.body.querySelector(`[data-row="${row.row}"] button`)?.focus();
    };
    const text = (value, className = "") =>
      el(`td${className}`, { title: value }, value ? breakable(value) : el("span.none", {}, "–"));
    const line = el(
      "tr",
      { "data-row": String(row.row), class: isOpen ? "open" : null, onclick: toggle },
      el(
        "td.number.size",
        { title: `${formatCount(row.size_bytes)} bytes`, "data-bytes": String(row.size_bytes) },
        el(
          "button.expand",
          { type: "button", "aria-expanded": String(isOpen), "aria-label": `Details of ${row.name || "this block"}` },
          isOpen ? "▾" : "▸",
        ),
        formatBytes(row.size_bytes),
        el("span.size-bar", { style: { width: `${(100 * row.size_bytes) / most}%`, background: kind.colour } }),
      ),
      el("td.nowrap", {}, swatch(kind), kind.label),
      text(row.name),
      text(row.module),
      text(row.op, ".mono"),
      el("td.number", {}, String(row.step)),
      el("td.nowrap", {}, row.phase),
      el("td.number", {}, String(row.rank)),
      el("td.number.nowrap", {}, row.preexisting ? "before recording" : formatInstant(row.born)),
    );
    return isOpen
      ? [line, el("tr.details", {}, el("td", { colspan: String(COLUMNS.length) }, this.details(row, answer)))]
      : [line];
  }

  details(row, answer) {
    const frames = answer.stacks[row.stack] ?? [];
    const lived =
      row.freed === null
        ? "never freed in this capture"
        : `${formatDuration(row.freed - row.born)}, freed at ${formatInstant(row.freed)}`;
    const facts = [
      [
        "Size",
        `${formatCount(row.size_bytes)} bytes (${formatShare(row.size_bytes, answer.allocated_bytes)} of all), ${formatCount(row.requested_bytes)} requested`,
      ],
      ["Lived", lived],
      ["Category", `${this.context.kind(row.category).label}, ${row.certainty}`],
    ];
    return el(
      "div.block-details",
      {},
      el(
        "dl",
        {},
        facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
      ),
      row.parts?.length
        ? el(
            "div",
            {},
            el("h3", {}, "Parts"),
            el(
              "ul.parts",
              {},
              row.parts.map(([name, module, size]) =>
                el("li", {}, el("span.number", {}, formatBytes(size)), " ", name, module ? ` in ${module}` : ""),
              ),
            ),
          )
        : null,
      el(
        "div",
        {},
        el("h3", {}, "Stack, innermost first"),
        frames.length
          ? el(
              "ol.stack",
              {},
              frames.map((frame) => el("li", {}, frame)),
            )
          : el(
              "p.hint",
              {},
              row.preexisting ? "It was there before recording began." : "No stack was recorded for this block.",
            ),
      ),
    );
  }

  update(changed) {
    const names = ["run", "rank", "at", "category", "search", "sort", "descending", "offset"];
    if (changed.has("search") && document.activeElement !== this.search) this.search.value = this.state.get("search");
    if (["run", "rank", "at"].some((name) => changed.has(name))) this.open.clear();
    if (names.some((name) => changed.has(name))) this.load();
  }
}
