/** How long blocks live: each one a bar from its allocation to its free, and how many live how long. */

import { busy, latest } from "../asking.js";
import { Plot } from "../charts/plot.js";
import { hideTooltip, showTooltip } from "../charts/tooltip.js";
import { swatch } from "../charts/legend.js";
import { el, fill, notice, selector, table } from "../dom.js";
import { colour } from "../theme.js";
import { formatBytes, formatCount, formatDuration, formatInstant } from "../units.js";
import { afterKey, asState, windowOf } from "../window.js";

const LIMITS = [
  ["300", "largest 300"],
  ["600", "largest 600"],
  ["1500", "largest 1500"],
];
const LANE_PX = 7;
const LEAST_PX = 180;
const MOST_PX = 620;
const FRAME_PX = 66; // axis and head of the chart

export class LifetimesView {
  constructor(context) {
    this.context = context;
    this.state = context.state;
    this.span = [0, 1];
    this.limit = "600";
    this.lanes = [];
    this.summary = el("span.window-text");
    this.tools = el("div.tools");
    this.host = el("div.chart");
    this.message = el("div");
    this.legend = el("div.legend-line");
    this.bars = el("div.histogram");
    this.card = el(
      "section.card",
      { "aria-label": "Lifetimes" },
      el("header.card-head", {}, el("h2", {}, "Lifetimes of blocks"), this.summary, this.tools),
      this.message,
      this.host,
      this.legend,
    );
    this.node = el(
      "div.view.view-lifetimes",
      {},
      this.card,
      el(
        "section.card",
        { "aria-label": "How long blocks live" },
        el(
          "header.card-head",
          {},
          el("h2", {}, "How long blocks live"),
          el("span.window-text", {}, "those that were freed, of the window above"),
        ),
        this.bars,
      ),
    );
    this.plot = new Plot(this.host, {
      height: LEAST_PX,
      label: "Blocks as bars from allocation to free",
      paint: (ctx, box, across) => this.paint(ctx, box, across),
      onWindow: (window) => this.onWindow(window),
      onHover: (index, time, event) => this.hover(time, event),
      onPick: (index, time, event) => this.pick(time, event),
    });
    this.load = latest(() => this.ask());
  }

  async ask() {
    const { source, state } = { source: this.context.source, state: this.state };
    const run = this.context.run().run;
    const rank = this.context.rank().key;
    const range = { from: state.get("from"), to: state.get("to") };
    try {
      [this.answer, this.marks] = await busy(
        this.card,
        Promise.all([
          source.ask("lifetimes", { run, rank, ...range, limit: this.limit, category: state.get("category") }),
          source.ask("timeline", { run, rank, ...range }),
        ]),
      );
    } catch (error) {
      return void fill(this.message, notice("Lifetimes cannot be shown", error.message, "error"));
    }
    fill(this.message);
    return this.draw();
  }

  draw() {
    const { answer, state } = this;
    this.span = this.marks.span;
    this.lanes = lanes(answer.blocks);
    const window = windowOf(state, this.span);
    const height = Math.min(Math.max(this.lanes.length * LANE_PX + FRAME_PX, LEAST_PX), MOST_PX);
    this.plot.resize(height);
    this.plot.show([[...window]], {
      window,
      span: this.span,
      most: 1,
      marks: { steps: this.marks.steps, phases: this.marks.phases, picked: state.get("at") },
    });
    const left = answer.count - answer.blocks.length;
    this.summary.textContent =
      `${formatCount(answer.blocks.length)} blocks, ${formatBytes(answer.shown_bytes)}` +
      (left > 0 ? ` of ${formatCount(answer.count)} blocks, ${formatBytes(answer.size_bytes)}` : "") +
      (answer.left_out?.count ? "; small blocks are not in this file" : "");
    fill(
      this.tools,
      selector(
        "Category",
        [["", "all categories"], ...this.context.kinds.map(({ key, label }) => [key, label])],
        state.get("category"),
        (category) => state.set({ category, offset: 0 }),
      ),
      selector("Show", LIMITS, this.limit, (limit) => {
        this.limit = limit;
        this.load();
      }),
      el(
        "button.tool",
        { type: "button", title: "Show the whole run (0)", onclick: () => this.onWindow(this.span) },
        "All",
      ),
    );
    const seen = new Set(answer.blocks.map(([, , , , category]) => category));
    fill(
      this.legend,
      this.context.kinds.filter((_, at) => seen.has(at)).map((kind) => el("span", {}, swatch(kind), kind.label)),
    );
    if (!answer.blocks.length)
      fill(this.message, notice("No block was alive in this window", "Zoom out, or take the filter away."));
    this.node.dataset.shown = `${window.join("-")}/${answer.blocks.length}`;
    this.drawHistogram();
  }

  drawHistogram() {
    const { histogram } = this.answer;
    const most = Math.max(1, ...histogram.map(([, count]) => count));
    const mostBytes = Math.max(1, ...histogram.map(([, , bytes]) => bytes));
    fill(
      this.bars,
      histogram.length
        ? table(
            "bars",
            ["Freed within", "Blocks", "", "Bytes", ""],
            el(
              "tbody",
              {},
              histogram.map(([upper, count, bytes]) =>
                el(
                  "tr",
                  {},
                  el("td.number.nowrap", {}, upper === null ? "never" : formatDuration(upper)),
                  el("td.number", {}, formatCount(count)),
                  bar(count / most),
                  el("td.number.nowrap", {}, formatBytes(bytes)),
                  bar(bytes / mostBytes),
                ),
              ),
            ),
          )
        : notice("Nothing was freed in this window", "What is alive here stays until the end of the capture."),
    );
  }

  paint(ctx, { left, top, width, height, ratio }, across) {
    const { kinds } = this.context;
    const lane = height / Math.max(this.lanes.length, 1);
    ctx.save();
    ctx.beginPath();
    ctx.rect(left, top, width, height);
    ctx.clip();
    const gap = lane > 3 * ratio ? ratio : 0;
    this.lanes.forEach((blocks, number) => {
      const y = top + height - (number + 1) * lane;
      for (const [, born, freed, , category] of blocks) {
        const start = Math.max(across(born), left - 1);
        const end = freed === null ? left + width + 1 : across(freed);
        ctx.fillStyle = kinds[category]?.colour ?? colour("muted");
        ctx.fillRect(start, y, Math.max(end - start - (end - start > 3 * ratio ? gap : 0), ratio), lane - gap);
      }
    });
    ctx.restore();
  }

  blockAt(time, event) {
    const { over } = this.plot.chart;
    const box = over.getBoundingClientRect();
    const number = Math.floor(((box.bottom - event.clientY) / box.height) * this.lanes.length);
    const slack = ((this.plot.window[1] - this.plot.window[0]) / Math.max(box.width, 1)) * 2;
    return (
      this.lanes[number]?.find(
        ([, born, freed]) => born <= time + slack && (freed === null || freed >= time - slack),
      ) ?? null
    );
  }

  hover(time, event) {
    this.plot.point(time);
    const block = time === null ? null : this.blockAt(time, event);
    if (!block) return hideTooltip();
    const [, born, freed, size, category, module, name] = block;
    return showTooltip(event, [
      el("strong", {}, this.answer.names[name] || this.context.kinds[category].label),
      [this.context.kinds[category].label, formatBytes(size)],
      this.answer.modules[module] ? ["module", this.answer.modules[module]] : null,
      ["born", formatInstant(born)],
      ["lived", freed === null ? "to the end" : formatDuration(freed - born)],
    ]);
  }

  pick(time, event) {
    const block = this.blockAt(time, event);
    this.state.set({ at: Math.round(block ? Math.max(block[1], 0) : time), view: "timeline", offset: 0 });
  }

  onWindow(window) {
    this.state.set(asState(window, this.span));
  }

  key(key) {
    const window = afterKey(key, windowOf(this.state, this.span), this.span);
    if (window) this.onWindow(window);
    return Boolean(window);
  }

  update(changed) {
    if (changed.has("from") || changed.has("to")) this.plot.look(windowOf(this.state, this.span));
    if (["run", "rank", "from", "to", "category"].some((name) => changed.has(name))) this.load();
  }

  redraw() {
    this.plot.redraw();
  }

  start() {
    this.load();
  }

  refresh() {
    this.load();
  }

  destroy() {
    this.plot.destroy();
    hideTooltip();
  }
}

/** Blocks in rows, each in the first one that is free again when it is born. */
function lanes(blocks) {
  const rows = [];
  const ends = [];
  const lasting = blocks.filter(([, , freed]) => freed === null);
  const passing = blocks.filter(([, , freed]) => freed !== null);
  for (const block of [...lasting, ...passing]) {
    let row = ends.findIndex((end) => end <= block[1]);
    if (row < 0) row = ends.push(0) - 1;
    (rows[row] ??= []).push(block);
    ends[row] = block[2] ?? Infinity;
  }
  return rows;
}

function bar(share) {
  return el("td.wide", {}, el("span.plain-bar", { style: { width: `${100 * share}%` } }));
}
