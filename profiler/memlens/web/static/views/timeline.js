/** What was allocated when, by category: one rank, one panel for each, or all in one chart; and what was alive. */

import { AreaChart } from "../charts/area.js";
import { Legend } from "../charts/legend.js";
import { LineChart } from "../charts/lines.js";
import { Minimap } from "../charts/minimap.js";
import { hideTooltip, showTooltip } from "../charts/tooltip.js";
import { busy, latest } from "../asking.js";
import { el, fill, notice, segmented } from "../dom.js";
import { rankColour, rankName } from "../charts/ranks.js";
import { formatBytes, formatCount, formatDuration, formatInstant, formatShare } from "../units.js";
import { asState, panned, windowOf, zoomed } from "../window.js";
import { AliveTable } from "./alive.js";

const MOST_PANELS = 16;
const LAYOUTS = [
  ["rank", "This rank"],
  ["panels", "All ranks, a panel each"],
  ["overlay", "All ranks, overlaid"],
];

export class TimelineView {
  constructor(context) {
    this.context = context;
    this.state = context.state;
    this.charts = [];
    this.answers = [];
    this.lines = null;
    this.span = [0, 1];
    this.legend = new Legend(context.kinds, (category) => this.state.set({ category, offset: 0 }));
    this.minimap = new Minimap((window) => this.onWindow(window));
    this.alive = new AliveTable(context);
    this.body = el("div.charts");
    this.tools = el("div.tools");
    this.summary = el("span.window-text");
    this.chartCard = el(
      "section.card",
      { "aria-label": "Timeline" },
      el("header.card-head", {}, el("h2", {}, "Memory over time"), this.summary, this.tools),
      el("div.chart-row", {}, el("div.chart-column", {}, this.body, this.minimap.node), this.legend.node),
    );
    this.node = el("div.view.view-timeline", {}, this.chartCard, this.alive.node);
    this.load = latest(() => this.ask());
    this.build();
  }

  layout() {
    const several = this.context.run().ranks.length > 1;
    return several ? this.state.get("layout") : "rank";
  }

  ranks() {
    const { ranks } = this.context.run();
    return this.layout() === "rank" ? [this.context.rank()] : ranks.slice(0, MOST_PANELS);
  }

  // -- building --------------------------------------------------------------------------------

  build() {
    this.charts.forEach((chart) => chart.destroy());
    this.lines?.destroy();
    this.charts = [];
    this.lines = null;
    this.answers = [];
    const layout = this.layout();
    const ranks = this.ranks();
    const several = this.context.run().ranks.length > 1;
    fill(
      this.tools,
      several ? segmented("Ranks", LAYOUTS, layout, (value) => this.state.set({ layout: value })) : null,
      el(
        "div.buttons",
        { role: "group", "aria-label": "Zoom" },
        this.button("−", "Zoom out (-)", () => this.zoom(2)),
        this.button("+", "Zoom in (+)", () => this.zoom(0.5)),
        this.button("Peak", "Show the peak, and what was alive at it (P)", () => this.toPeak()),
        this.button("All", "Show the whole run (0)", () => this.onWindow(this.span)),
      ),
    );
    fill(this.body);
    this.node.dataset.layout = layout;
    if (layout === "overlay") {
      const host = el("div.chart");
      this.body.append(host);
      this.lines = new LineChart(host, {
        height: 330,
        label: "Allocated memory of all ranks over time",
        paints: ranks.map((_, at) => rankColour(at, ranks.length)),
        onWindow: (window) => this.onWindow(window),
        onHover: (index, time, event) => this.hoverLines(index, event),
        onPick: (index) => this.pickLine(index),
      });
    } else {
      for (const rank of ranks) {
        const host = el("div.chart");
        this.body.append(
          el(
            "figure.panel",
            { "data-rank": rank.key },
            ranks.length > 1 ? el("figcaption", {}, `rank ${rank.rank}`, el("span", {}, rank.device)) : null,
            host,
          ),
        );
        const chart = new AreaChart(host, {
          kinds: this.context.kinds,
          height: ranks.length > 1 ? 190 : 330,
          label: `Allocated memory of rank ${rank.rank} over time, by category`,
          onWindow: (window) => this.onWindow(window),
          onHover: (index, time, event) => this.hover(chart, index, event),
          onPick: (index) => this.pick(chart, index),
        });
        chart.rank = rank;
        this.charts.push(chart);
      }
    }
    if (this.context.run().ranks.length > ranks.length && layout !== "rank") {
      this.body.append(
        el(
          "p.hint",
          {},
          `The first ${ranks.length} of ${this.context.run().ranks.length} ranks. The view "Ranks" shows all.`,
        ),
      );
    }
  }

  button(text, title, onclick) {
    return el("button.tool", { type: "button", title, "aria-label": title, onclick }, text);
  }

  // -- asking ----------------------------------------------------------------------------------

  async ask() {
    const { source } = this.context;
    const run = this.context.run().run;
    const window = [this.state.get("from"), this.state.get("to")];
    const [from, to] = window;
    try {
      if (this.lines) {
        const answer = await busy(
          this.chartCard,
          source.ask("overlay", {
            run,
            ranks: this.ranks()
              .map(({ key }) => key)
              .join(","),
            from,
            to,
          }),
        );
        this.overlay = answer;
        this.marks = await source.ask("timeline", { run, rank: this.context.rank().key, points: 10 });
      } else {
        this.answers = await busy(
          this.chartCard,
          Promise.all(this.charts.map((chart) => source.ask("timeline", { run, rank: chart.rank.key, from, to }))),
        );
      }
    } catch (error) {
      return this.say("This run cannot be shown", error.message, "error");
    }
    if (this.context.run().run !== run) return;
    this.error?.remove();
    this.error = null;
    this.draw();
    if (from === null) this.whole();
  }

  say(title, text, kind) {
    this.error?.remove();
    this.error = notice(title, text, kind);
    this.body.prepend(this.error);
  }

  /** The strip below the charts shows the whole run; it comes with the first answer, or is asked for. */
  whole() {
    const answer =
      this.overlay && this.lines ? (this.overlay.ranks[0] ?? { time: [], allocated: [] }) : this.answers[0];
    if (answer) this.minimap.show({ time: answer.time, bytes: answer.allocated }, this.span);
  }

  async askWhole() {
    if (this.state.get("from") === null || this.wholeFor === this.context.run().run) return;
    this.wholeFor = this.context.run().run;
    const answer = await this.context.source
      .ask("timeline", { run: this.wholeFor, rank: this.context.rank().key, points: 400 })
      .catch(() => null);
    if (answer) {
      this.minimap.show({ time: answer.time, bytes: answer.allocated }, answer.span);
      this.minimap.look(windowOf(this.state, answer.span));
    }
  }

  // -- drawing ---------------------------------------------------------------------------------

  draw() {
    if (this.lines) this.drawLines();
    else this.drawAreas();
    const window = windowOf(this.state, this.span);
    this.minimap.span = this.span;
    this.minimap.look(window);
    this.summary.textContent = this.describe(window);
    this.node.dataset.shown = window.join("-");
    this.rest();
    this.askWhole();
  }

  describe(window) {
    const width = formatDuration(window[1] - window[0]);
    const isAll = window[0] <= this.span[0] && window[1] >= this.span[1];
    const exact = this.lines ? null : this.answers.every((answer) => answer.exact);
    const detail = exact === null ? "" : exact ? " · every event" : " · sampled, peaks kept";
    return isAll
      ? `whole run, ${width}${detail}`
      : `${width} of ${formatDuration(this.span[1] - this.span[0])}${detail}`;
  }

  drawAreas() {
    const longest = this.answers.reduce((a, b) => (b.span[1] > a.span[1] ? b : a));
    this.span = longest.span;
    if (this.answers.every(({ peak }) => !peak.allocated_bytes)) {
      this.say("Nothing was allocated", "No event was recorded of this rank; choose another, or another run.", "empty");
    }
    const most = Math.max(...this.answers.map(AreaChart.most));
    const wanted = windowOf(this.state, this.span);
    this.charts.forEach((chart, at) => {
      chart.show(this.answers[at], {
        most,
        category: this.state.get("category"),
        picked: this.pickedIn(chart),
        window: wanted,
        span: this.span,
      });
    });
  }

  drawLines() {
    this.span = this.overlay.span;
    this.lines.show(
      this.overlay.ranks.map(({ time, allocated }) => ({ time, bytes: allocated })),
      {
        window: windowOf(this.state, this.span),
        span: this.span,
        marks: {
          picked: this.pickedInLines(),
          steps: this.marks.steps.map(([step, time]) => [step, time + this.shift()]),
        },
      },
    );
  }

  pickedIn(chart) {
    const at = this.state.get("at");
    return at !== null && chart.rank.key === this.context.rank().key ? at : null;
  }

  /** The legend when nothing is pointed at: the instant that was picked, or the peak. */
  rest() {
    if (this.lines) return this.restLines();
    const chart = this.charts.find(({ rank }) => rank.key === this.context.rank().key) ?? this.charts[0];
    if (!chart?.answer) return;
    const at = this.state.get("at");
    const peak = chart.answer.window_peak;
    const time = at ?? peak.time;
    const index = at === null ? chart.answer.allocated.indexOf(peak.allocated_bytes) : chart.plot.indexAt(time);
    const { step, phase } = peak;
    const entry = { ...chart.entry(Math.max(index, 0)), ...(at === null ? { time, step: String(step), phase } : {}) };
    const prefix = this.charts.length > 1 ? `rank ${chart.rank.rank}: ` : "";
    this.tell(chart, `${prefix}${at === null ? "peak of what is shown" : "picked instant"}`, entry);
  }

  tell(chart, title, entry) {
    const place = [formatInstant(entry.time), entry.step !== "" && `step ${entry.step}`, entry.phase]
      .filter(Boolean)
      .join(" · ");
    this.legend.show(title, place, entry, {
      known: new Set(this.answers.flatMap((answer) => Object.keys(answer.categories))),
      category: this.state.get("category"),
      capacity: chart.answer.capacity_bytes,
    });
  }

  restLines() {
    const peaks = this.overlay.ranks.map(({ allocated }) => Math.max(...allocated, 0));
    this.showRanks("peak of what is shown", peaks);
  }

  showRanks(title, values) {
    const ranks = this.overlay.ranks.map(({ key }, at) =>
      el(
        "button.legend-row",
        {
          type: "button",
          "data-rank": key,
          title: "Show this rank alone",
          onclick: () => this.state.set({ rank: key, layout: "rank" }),
          onpointerenter: () => this.lines.focus(at),
          onpointerleave: () => this.lines.focus(-1),
        },
        el("span.swatch", { style: { background: rankColour(at, this.overlay.ranks.length) } }),
        el("span.legend-label", {}, `rank ${rankName(this.context.rankOf(this.context.run(), key))}`),
        el("span.legend-value", {}, values[at] === null || values[at] === undefined ? "–" : formatBytes(values[at])),
        el("span"),
      ),
    );
    this.legend.title.textContent = title;
    this.legend.place.textContent = "";
    fill(this.legend.totals, ranks);
    for (const { row } of this.legend.rows.values()) row.hidden = true;
  }

  // -- pointing --------------------------------------------------------------------------------

  hover(chart, index, event) {
    if (index === null) {
      this.charts.forEach(({ plot }) => plot.point(null));
      hideTooltip();
      return this.rest();
    }
    const entry = chart.entry(index);
    this.charts.forEach(({ plot }) => plot.point(Math.max(entry.time, plot.window[0])));
    this.tell(chart, this.charts.length > 1 ? `rank ${chart.rank.rank} at the cursor` : "at the cursor", entry);
    const pointed = chart.bandAt(entry, event);
    showTooltip(event, [
      el("strong", {}, formatInstant(entry.time)),
      entry.step !== "" || entry.phase ? [`step ${entry.step}`, entry.phase] : null,
      ["allocated", `${formatCount(entry.allocated)} B`],
      pointed && [pointed.label, `${formatCount(pointed.bytes)} B · ${formatShare(pointed.bytes, entry.allocated)}`],
    ]);
  }

  hoverLines(index, event) {
    if (index === null) {
      hideTooltip();
      this.lines.plot.point(null);
      return this.restLines();
    }
    const time = this.lines.plot.chart.data[0][index];
    this.lines.plot.point(time);
    this.showRanks("at the cursor", this.lines.values(index));
    showTooltip(event, [el("strong", {}, formatInstant(time))]);
  }

  pick(chart, index) {
    this.state.set({ rank: chart.rank.key, at: chart.entry(index).time, offset: 0 });
  }

  /** How much later than the first of all ranks the one began whose blocks are listed. */
  shift() {
    return this.overlay.ranks.find(({ key }) => key === this.context.rank().key)?.shift ?? 0;
  }

  pickedInLines() {
    const at = this.state.get("at");
    return at === null ? null : at + this.shift();
  }

  pickLine(index) {
    this.state.set({ at: Math.max(this.lines.plot.chart.data[0][index] - this.shift(), 0), offset: 0 });
  }

  // -- moving ----------------------------------------------------------------------------------

  onWindow(window) {
    this.state.set(asState(window, this.span));
  }

  zoom(factor) {
    const window = windowOf(this.state, this.span);
    const at = this.state.get("at");
    const about = at !== null && at > window[0] && at < window[1] ? at : (window[0] + window[1]) / 2;
    this.onWindow(zoomed(window, factor, about, this.span));
  }

  pan(part) {
    this.onWindow(panned(windowOf(this.state, this.span), part, this.span));
  }

  toPeak() {
    this.state.set({ at: null, offset: 0, from: null, to: null });
  }

  /** @returns whether the key meant something here. */
  key(key) {
    const actions = {
      "+": () => this.zoom(0.5),
      "=": () => this.zoom(0.5),
      "-": () => this.zoom(2),
      0: () => this.onWindow(this.span),
      ArrowLeft: () => this.pan(-0.2),
      ArrowRight: () => this.pan(0.2),
      p: () => this.toPeak(),
      Escape: () => this.state.set({ at: null, offset: 0 }),
    };
    actions[key]?.();
    return key in actions;
  }

  // -- changes ---------------------------------------------------------------------------------

  update(changed) {
    const any = (...names) => names.some((name) => changed.has(name));
    if (any("run", "layout") || (changed.has("rank") && this.layout() === "rank")) {
      this.wholeFor = null;
      this.build();
      this.load();
    } else if (any("from", "to")) {
      const window = windowOf(this.state, this.span);
      for (const { plot } of this.lines ? [this.lines] : this.charts) plot.look(window);
      this.minimap.look(window);
      this.load();
    } else if (any("category", "at", "rank")) {
      for (const chart of this.charts) {
        chart.category = this.state.get("category");
        chart.plot.mark({ picked: this.pickedIn(chart) });
      }
      if (this.overlay) this.lines?.plot.mark({ picked: this.pickedInLines() });
      if (!this.lines && this.answers.length) this.rest();
    }
    this.alive.update(changed);
  }

  /** The run has grown. */
  refresh() {
    this.wholeFor = null;
    this.load();
    this.alive.load();
  }

  redraw() {
    if (this.answers.length || this.overlay) this.draw();
    this.minimap.draw();
  }

  start() {
    this.load();
    this.alive.load();
  }

  destroy() {
    this.charts.forEach((chart) => chart.destroy());
    this.lines?.destroy();
    hideTooltip();
  }
}
