/** What each module holds, as an icicle: a child lies below its parent, as wide as its share. */

import { busy, latest } from "../asking.js";
import { composition } from "../charts/composition.js";
import { hideTooltip, showTooltip } from "../charts/tooltip.js";
import { breakable, el, fill, notice, table } from "../dom.js";
import { find, flat, moduleTree, OUTSIDE } from "./module_tree.js";
import { formatBytes, formatCount, formatInstant, formatShare } from "../units.js";

const LEAST_WIDTH = 0.0015;
const ROWS_PX = 44;
const MOST_ROWS = 200;

export class ModulesView {
  constructor(context) {
    this.context = context;
    this.state = context.state;
    this.summary = el("span.window-text");
    this.tools = el("div.tools");
    this.path = el("nav.crumbs", { "aria-label": "Module" });
    this.picture = el("div.icicle", { role: "group", "aria-label": "Memory by module" });
    this.legend = el("div.legend-line");
    this.rows = el("tbody");
    this.foot = el("span.table-count");
    this.card = el(
      "section.card",
      { "aria-label": "Memory by module" },
      el("header.card-head", {}, el("h2", {}, "Memory by module"), this.summary, this.tools),
      this.path,
      this.picture,
      this.legend,
    );
    this.list = el(
      "section.card",
      { "aria-label": "Modules" },
      el("header.card-head", {}, el("h2", {}, "Modules, largest first")),
      el(
        "div.table-scroll",
        {},
        table("", ["Module", "Class", "With all inside", "Share", "Itself", "Categories"], this.rows),
      ),
      el("footer.card-foot", {}, this.foot),
    );
    this.node = el("div.view.view-modules", {}, this.card, this.list);
    this.load = latest(() => this.ask());
  }

  async ask() {
    const parameters = { run: this.context.run().run, rank: this.context.rank().key, time: this.state.get("at") };
    try {
      this.answer = await busy(this.card, this.context.source.ask("modules", parameters));
    } catch (error) {
      return void fill(this.picture, notice("The modules cannot be shown", error.message, "error"));
    }
    this.tree = moduleTree(this.answer.modules);
    return this.draw();
  }

  draw() {
    const { answer, tree, state } = this;
    const focus = find(tree, state.get("module")) ?? tree;
    const at = state.get("at") === null ? "at the peak" : "at the picked instant";
    this.summary.textContent = `${at}, ${formatInstant(answer.time)} · ${formatBytes(answer.allocated_bytes)} allocated`;
    fill(
      this.tools,
      state.get("at") === null
        ? null
        : el("button.tool", { type: "button", onclick: () => state.set({ at: null }) }, "Peak"),
    );
    fill(this.path, focus === tree ? "Click a module to see what is inside it." : this.crumbs(focus));
    const depth = this.depth(focus);
    this.picture.style.height = `${depth * ROWS_PX}px`;
    this.picture.dataset.focus = focus.path;
    if (!tree.total)
      fill(this.picture, notice("Nothing was allocated at this instant", "Pick another in the timeline."));
    else fill(this.picture, this.cells(focus, 0, 1, 0, focus));
    const known = new Set(Object.keys(tree.categories));
    fill(
      this.legend,
      this.context.kinds
        .filter(({ key }) => known.has(key))
        .map(({ colour, label, key }) =>
          el("span", { "data-category": key }, el("span.swatch", { style: { background: colour } }), label),
        ),
    );
    this.drawList(focus);
    this.node.dataset.shown = `${answer.time}/${focus.path}`;
  }

  crumbs(focus) {
    const chain = [];
    for (let node = focus; node; node = node.parent) chain.unshift(node);
    return chain.map((node, at) => [
      at ? " / " : "",
      at === chain.length - 1
        ? el("strong", {}, node.name)
        : el("button.link", { type: "button", onclick: () => this.state.set({ module: node.path }) }, node.name),
    ]);
  }

  depth(node) {
    return 1 + node.children.reduce((most, child) => Math.max(most, this.depth(child)), 0);
  }

  cells(node, left, width, row, focus) {
    if (width < LEAST_WIDTH) return [];
    const cell = el(
      "button.cell",
      {
        type: "button",
        "data-module": node.path,
        "data-bytes": String(node.total),
        "aria-label": `${label(node)}: ${formatBytes(node.total)}`,
        style: {
          left: `${100 * left}%`,
          width: `${100 * width}%`,
          top: `${row * ROWS_PX}px`,
          height: `${ROWS_PX - 2}px`,
        },
        onclick: () => this.zoom(node, focus),
        onpointermove: (event) => this.point(node, event),
        onpointerleave: hideTooltip,
      },
      el("span.cell-name", {}, node.name),
      el("span.cell-size", {}, formatBytes(node.total)),
      composition(this.context.kinds, node.categories, node.total),
    );
    let from = left;
    return [
      cell,
      ...node.children.flatMap((child) => {
        const share = focus.total ? child.total / focus.total : 0;
        const below = this.cells(child, from, share, row + 1, focus);
        from += share;
        return below;
      }),
    ];
  }

  zoom(node, focus) {
    hideTooltip();
    const wanted = node === focus ? node.parent : node;
    if (wanted) this.state.set({ module: wanted.path });
  }

  point(node, event) {
    const kinds = this.context.kinds.filter(({ key }) => node.categories[key]);
    showTooltip(event, [
      el("strong", {}, label(node)),
      node.className || null,
      ["with all inside", `${formatBytes(node.total)} · ${formatShare(node.total, this.answer.allocated_bytes)}`],
      node.children.length ? ["itself", formatBytes(node.own)] : null,
      ...kinds.map(({ key, label }) => [label, formatBytes(node.categories[key])]),
    ]);
  }

  drawList(focus) {
    const nodes = focus.children.length ? flat(focus) : [focus];
    fill(
      this.rows,
      nodes
        .slice(0, MOST_ROWS)
        .map((node) =>
          el(
            "tr",
            { "data-module": node.path, onclick: () => this.state.set({ module: node.path }) },
            el("td", {}, el("button.link", { type: "button" }, breakable(label(node)))),
            el("td", {}, node.className),
            el(
              "td.number",
              { "data-bytes": String(node.total), title: `${formatCount(node.total)} bytes` },
              formatBytes(node.total),
            ),
            el("td.number", {}, formatShare(node.total, this.answer.allocated_bytes)),
            el("td.number", {}, formatBytes(node.own)),
            el("td.wide", {}, composition(this.context.kinds, node.categories, nodes[0].total)),
          ),
        ),
    );
    const left = this.answer.left_out;
    this.foot.textContent = [
      nodes.length > MOST_ROWS
        ? `The largest ${MOST_ROWS} of ${formatCount(nodes.length)}; click one in the picture to see what is inside.`
        : "",
      left?.size_bytes
        ? `${left.count ? `${formatCount(left.count)} more` : "What is"} not shown: ${formatBytes(left.size_bytes)}.`
        : "",
    ].join(" ");
  }

  key(key) {
    const focus = this.tree && find(this.tree, this.state.get("module"));
    if (key === "p") this.state.set({ at: null });
    else if (key === "0") this.state.set({ module: "" });
    else if (key === "-" && focus) this.state.set({ module: focus.parent.path });
    else return false;
    return true;
  }

  update(changed) {
    if (["run", "rank", "at"].some((name) => changed.has(name))) this.load();
    else if (changed.has("module") && this.tree) this.draw();
  }

  start() {
    this.load();
  }

  refresh() {
    this.load();
  }

  destroy() {
    hideTooltip();
  }
}

function label(node) {
  return node.name === OUTSIDE ? OUTSIDE : node.path || node.name;
}
