/** Each step's peak by category, what was left at its end, and what grows from step to step. */

import { busy, latest } from "../asking.js";
import { swatch } from "../charts/legend.js";
import { hideTooltip, showTooltip } from "../charts/tooltip.js";
import { el, fill, notice, segmented, svg, table } from "../dom.js";
import { formatBytes, formatCount, formatDuration } from "../units.js";

const HEIGHT_PX = 260;
const LEFT_PX = 74;
const BOTTOM_PX = 22;
const TOP_PX = 8;
const PADDING_PX = 28;
const MOST_BAR_PX = 56;

export class StepsView {
  constructor(context) {
    this.context = context;
    this.state = context.state;
    this.moment = "peak";
    this.summary = el("span.window-text");
    this.tools = el("div.tools");
    this.picture = el("div.steps-chart");
    this.legend = el("div.legend-line");
    this.growth = el("div");
    this.card = el(
      "section.card",
      { "aria-label": "Steps" },
      el("header.card-head", {}, el("h2", {}, "Memory by step"), this.summary, this.tools),
      this.picture,
      this.legend,
    );
    this.node = el(
      "div.view.view-steps",
      {},
      this.card,
      el(
        "section.card",
        { "aria-label": "Growth" },
        el(
          "header.card-head",
          {},
          el("h2", {}, "Growth from step to step"),
          el("span.window-text", {}, "what accumulates: suspected leaks"),
        ),
        this.growth,
      ),
    );
    this.observer = new ResizeObserver(() => this.answer && this.draw());
    this.observer.observe(this.picture);
    this.load = latest(() => this.ask());
  }

  async ask() {
    try {
      this.answer = await busy(
        this.card,
        this.context.source.ask("steps", { run: this.context.run().run, rank: this.context.rank().key }),
      );
    } catch (error) {
      return void fill(this.picture, notice("The steps cannot be shown", error.message, "error"));
    }
    this.draw();
    return this.drawGrowth();
  }

  draw() {
    const { steps } = this.answer;
    fill(
      this.tools,
      segmented(
        "Moment",
        [
          ["peak", "At each peak"],
          ["end", "At each end"],
        ],
        this.moment,
        (value) => {
          this.moment = value;
          this.draw();
        },
      ),
    );
    if (!steps.length)
      return void fill(
        this.picture,
        notice(
          "No complete step was recorded",
          "A step ends with optimizer.step(), or when your loop calls memlens' step().",
        ),
      );
    this.summary.textContent = `${this.answer.count > steps.length ? `the highest of each stretch, ${formatCount(steps.length)} of ${formatCount(this.answer.count)} steps` : `${formatCount(steps.length)} steps`}; click one to see it in the timeline`;
    const width = Math.max(this.picture.clientWidth - PADDING_PX, 200);
    const most = Math.max(...steps.map(({ peak_bytes: bytes }) => bytes), 1);
    const pitch = (width - LEFT_PX - 8) / steps.length;
    const bar = Math.min(Math.max(pitch - 2, pitch * 0.7), MOST_BAR_PX);
    const up = (bytes) => (bytes / (most * 1.05)) * (HEIGHT_PX - BOTTOM_PX - TOP_PX);
    const base = HEIGHT_PX - BOTTOM_PX;
    const every = Math.max(1, Math.ceil(46 / pitch));
    fill(
      this.picture,
      svg(
        "svg",
        { width, height: HEIGHT_PX, role: "group", "aria-label": "Bytes of each step by category" },
        ticks(most).map((bytes) =>
          svg(
            "g",
            {},
            svg("line", { class: "grid", x1: LEFT_PX, x2: width - 8, y1: base - up(bytes), y2: base - up(bytes) }),
            svg(
              "text",
              { class: "tick", x: LEFT_PX - 8, y: base - up(bytes) + 4, "text-anchor": "end" },
              formatBytes(bytes).replace(".00", ""),
            ),
          ),
        ),
        steps.map((step, number) => this.bar(step, LEFT_PX + pitch * number + (pitch - bar) / 2, bar, base, up)),
        steps.map((step, number) =>
          number % every
            ? null
            : svg(
                "text",
                {
                  class: "tick",
                  x: LEFT_PX + pitch * (number + 0.5),
                  y: HEIGHT_PX - 6,
                  "text-anchor": "middle",
                },
                String(step.step),
              ),
        ),
      ),
    );
    this.node.dataset.shown = `${steps.length}/${this.moment}`;
    const known = this.context.kinds.filter(({ key }) => steps.some((step) => this.categories(step)[key]));
    fill(
      this.legend,
      known.map((kind) => el("span", {}, swatch(kind), kind.label)),
    );
  }

  categories(step) {
    return this.moment === "peak" ? step.categories : step.end_categories;
  }

  bar(step, x, width, base, up) {
    let y = base;
    const categories = this.categories(step);
    const total = this.moment === "peak" ? step.peak_bytes : step.end_bytes;
    const show = () =>
      this.state.set({ view: "timeline", from: step.start, to: Math.max(step.end, step.start + 1), at: null });
    return svg(
      "g",
      {
        class: "step-bar",
        tabindex: 0,
        role: "button",
        "data-step": step.step,
        "data-bytes": total,
        "aria-label": `step ${step.step}: ${formatBytes(total)}`,
        onclick: show,
        onkeydown: (event) => event.key === "Enter" && show(),
        onpointermove: (event) => this.point(step, event),
        onpointerleave: hideTooltip,
      },
      svg("rect", { class: "hit", x: x - 1, width: width + 2, y: TOP_PX, height: base - TOP_PX }),
      this.context.kinds.map(({ key, colour }) => {
        if (!categories[key]) return null;
        const height = up(categories[key]);
        y -= height;
        return svg("rect", { x, width, y, height, fill: colour });
      }),
    );
  }

  point(step, event) {
    const categories = this.categories(step);
    showTooltip(event, [
      el("strong", {}, `step ${step.step}`),
      ["peak", formatBytes(step.peak_bytes)],
      ["at its end", formatBytes(step.end_bytes)],
      ["took", formatDuration(step.end - step.start)],
      ...this.context.kinds
        .filter(({ key }) => categories[key])
        .map(({ key, label }) => [label, formatBytes(categories[key])]),
    ]);
  }

  drawGrowth() {
    const { growth, steps } = this.answer;
    if (!growth.length) {
      const text =
        steps.length < 4
          ? "It takes at least three steps after the first one to tell."
          : "No group of blocks accumulates from one step to the next.";
      return void fill(this.growth, notice("No growth was found", text));
    }
    return void fill(
      this.growth,
      el(
        "div.table-scroll",
        {},
        table(
          "",
          ["Per step", "Category", "Name", "Module", "From", "To", "Steps", "Allocated by"],
          el(
            "tbody",
            {},
            growth.map((item) => {
              const kind = this.context.kind(item.category);
              return el(
                "tr",
                {},
                el(
                  "td.number.nowrap",
                  { "data-bytes": String(item.bytes_per_step) },
                  formatBytes(item.bytes_per_step, true),
                ),
                el("td.nowrap", {}, swatch(kind), kind.label),
                el("td", {}, item.name || "–"),
                el("td", {}, item.module || "–"),
                el("td.number.nowrap", {}, formatBytes(item.first_bytes)),
                el("td.number.nowrap", {}, formatBytes(item.last_bytes)),
                el("td.number", {}, formatCount(item.steps)),
                el(
                  "td.mono",
                  {},
                  item.stack.length
                    ? el(
                        "details",
                        {},
                        el("summary", {}, item.stack[0]),
                        el(
                          "ol.stack",
                          {},
                          item.stack.slice(1).map((frame) => el("li", {}, frame)),
                        ),
                      )
                    : "–",
                ),
              );
            }),
          ),
        ),
      ),
    );
  }

  update(changed) {
    if (changed.has("run") || changed.has("rank")) this.load();
  }

  start() {
    this.load();
  }

  refresh() {
    this.load();
  }

  destroy() {
    this.observer.disconnect();
    hideTooltip();
  }
}

/** Four or so round sizes up to the most. */
function ticks(most) {
  let step = 1;
  while (most / step > 5) step *= 2;
  return Array.from({ length: Math.floor(most / step) + 1 }, (_, at) => at * step);
}
