/** Two runs on one axis, baseline against variant, and what differs at their peaks. */

import { AreaChart } from "../charts/area.js";
import { LineChart } from "../charts/lines.js";
import { hideTooltip, showTooltip } from "../charts/tooltip.js";
import { busy, latest } from "../asking.js";
import { el, fill, notice, segmented, selector } from "../dom.js";
import { rankName } from "../charts/ranks.js";
import { DifferenceTables } from "./difference.js";
import { formatPlace, StepAxis } from "./step_axis.js";
import { formatBytes, formatInstant, formatShare } from "../units.js";
import { afterKey, asState, windowOf } from "../window.js";

const CURVES = [
  ["areas", "Areas"],
  ["lines", "Lines"],
];
const AXES = [
  ["steps", "By step"],
  ["time", "By time"],
];

export class CompareView {
  constructor(context) {
    this.context = context;
    this.state = context.state;
    this.span = [0, 1];
    this.axes = [];
    this.charts = [];
    this.lines = null;
    this.pickers = el("div.tools");
    this.summary = el("div.verdict");
    this.body = el("div.charts");
    this.message = el("div");
    this.tables = new DifferenceTables(context.kinds);
    this.card = el(
      "section.card",
      { "aria-label": "Two runs" },
      el("header.card-head", {}, el("h2", {}, "Baseline and variant"), this.pickers),
      this.message,
      this.summary,
      this.body,
    );
    this.node = el("div.view.view-compare", {}, this.card, this.tables.node);
    this.load = latest(() => this.ask());
  }

  /** Run and rank of both sides; the variant is another run where there is one, else another rank. */
  sides() {
    const { context, state } = this;
    const run = context.run();
    const rank = context.rank();
    const readable = context.runs.filter(({ error, ranks }) => !error && ranks.length);
    const other =
      readable.find((each) => each.run === state.get("with")) ?? readable.find((each) => each.run !== run.run) ?? run;
    const rankThere =
      other.ranks.find(({ key }) => key === state.get("with_rank")) ??
      other.ranks.find(({ key }) => (other === run ? key !== rank.key : key === rank.key)) ??
      other.ranks[0];
    return [
      { run, rank },
      { run: other, rank: rankThere },
    ];
  }

  isAlone() {
    const [a, b] = this.sides();
    return a.run === b.run && a.rank === b.rank;
  }

  build() {
    this.charts.forEach((chart) => chart.destroy());
    this.lines?.destroy();
    this.charts = [];
    this.lines = null;
    fill(this.body);
    const [a, b] = this.sides();
    const readable = this.context.runs.filter(({ error, ranks }) => !error && ranks.length);
    fill(
      this.pickers,
      selector(
        "Variant",
        readable.map((each) => [each.run, each.run === "." ? each.name : each.run]),
        b.run.run,
        (value) => this.state.set({ with: value, with_rank: null }),
      ),
      b.run.ranks.length > 1
        ? selector(
            "Its rank",
            b.run.ranks.map((each) => [each.key, rankName(each)]),
            b.rank.key,
            (value) => this.state.set({ with: b.run.run, with_rank: value }),
          )
        : null,
      el(
        "button.tool",
        { type: "button", title: "Make the variant the baseline", onclick: () => this.swap() },
        "⇄ Swap",
      ),
      this.offersSteps === false
        ? null
        : segmented("Axis", AXES, this.state.get("axis"), (axis) => this.state.set({ axis })),
      segmented("Curves", CURVES, this.state.get("curves"), (curves) => this.state.set({ curves })),
    );
    if (this.isAlone()) {
      this.tables.node.hidden = true;
      return void fill(
        this.message,
        notice(
          "There is nothing to compare with yet",
          "Record a second run into the same folder (memlens run --out LOGDIR/variant train.py), or several at once with memlens compare.",
        ),
      );
    }
    this.tables.node.hidden = false;
    const onWindow = (window) => this.onWindow(window);
    const textOf = this.bySteps() ? formatPlace : undefined;
    if (this.state.get("curves") === "lines") {
      const host = el("div.chart");
      this.body.append(host);
      this.lines = new LineChart(host, {
        height: 330,
        label: "Allocated memory of both runs over time",
        paints: ["baseline", "variant"],
        onWindow,
        textOf,
        onHover: (index, time, event) => this.hoverLines(index, event),
      });
      return undefined;
    }
    for (const [side, word] of [
      [a, "Baseline"],
      [b, "Variant"],
    ]) {
      const host = el("div.chart");
      this.body.append(
        el(
          "figure.panel",
          { "data-side": word.toLowerCase() },
          el("figcaption", {}, el(`span.side.${word.toLowerCase()}`, {}, word), name(side)),
          host,
        ),
      );
      const chart = new AreaChart(host, {
        kinds: this.context.kinds,
        height: 210,
        label: `Allocated memory of ${name(side)} over time, by category`,
        onWindow,
        textOf,
        onHover: (index, time, event) => this.hover(chart, index, time, event),
        onPick: (index) => this.pick(chart, index),
      });
      chart.side = side;
      this.charts.push(chart);
    }
    return undefined;
  }

  async ask() {
    if (this.isAlone()) return;
    const [a, b] = this.sides();
    const of = ({ run, rank }) => ({ run: run.run, rank: rank.key });
    const ask = (question, parameters) => this.context.source.ask(question, parameters);
    try {
      const spans = await busy(this.card, Promise.all([a, b].map((side) => ask("timeline", of(side)))));
      const steps = await busy(this.card, Promise.all([a, b].map((side) => ask("steps", of(side)))));
      this.lay(steps.map((answer) => answer.steps));
      this.span = [0, Math.max(...spans.map(({ span }, at) => this.axes[at]?.toAxis(span[1]) ?? span[1]))];
      const window = windowOf(this.state, this.span, this.kept());
      [this.difference, ...this.answers] = await busy(
        this.card,
        Promise.all([
          ask("difference", { ...of(a), with_run: b.run.run, with_rank: b.rank.key }),
          ...[a, b].map((side, at) => ask("timeline", { ...of(side), ...this.within(window, spans[at].span, at) })),
        ]),
      );
    } catch (error) {
      this.tables.node.hidden = true;
      return void fill(this.message, notice("These two cannot be compared", error.message, "error"));
    }
    this.tables.node.hidden = false;
    fill(this.message);
    this.draw();
    this.drawVerdict();
    this.tables.show(this.difference);
  }

  /** Runs of different speed are compared by steps, where both have some. */
  lay(steps) {
    const offers = steps.every((rows) => rows.length > 1);
    this.axes = offers && this.state.get("axis") === "steps" ? steps.map((rows) => new StepAxis(rows)) : [];
    if (offers === this.offersSteps) return;
    this.offersSteps = offers;
    this.build();
  }

  bySteps() {
    return this.offersSteps !== false && this.state.get("axis") === "steps";
  }

  /** Under which names the state keeps the window: places of steps are no times. */
  kept() {
    return this.bySteps() ? ["step_from", "step_to"] : ["from", "to"];
  }

  /** What to ask a run for. The shorter one ends before the window does, perhaps; it is asked for what it has. */
  within(window, span, at) {
    const [from, to] = window.map((place) => this.axes[at]?.toTime(place) ?? place);
    return (window[0] <= this.span[0] && window[1] >= this.span[1]) || from >= span[1]
      ? {}
      : { from, to: Math.min(to, span[1]) };
  }

  draw() {
    const window = windowOf(this.state, this.span, this.kept());
    const answers = this.answers.map((answer, at) => this.axes[at]?.laid(answer) ?? answer);
    if (this.lines) {
      const curve = ({ time, allocated, span }) => ({ time, bytes: allocated, end: span[1] });
      this.lines.show(answers.map(curve), { window, span: this.span, marks: { steps: answers[0].steps } });
    } else {
      const most = Math.max(...answers.map(AreaChart.most));
      this.charts.forEach((chart, at) =>
        chart.show(answers[at], { most, window, span: this.span, category: this.state.get("category") }),
      );
    }
    this.node.dataset.shown = window.join("-");
  }

  drawVerdict() {
    const { a, b } = this.difference;
    const change = b.peak_bytes - a.peak_bytes;
    fill(
      this.summary,
      el("span.side.baseline", {}, "Baseline"),
      el("strong", { "data-bytes": String(a.peak_bytes) }, formatBytes(a.peak_bytes)),
      " peak, ",
      el("span.side.variant", {}, "Variant"),
      el("strong", { "data-bytes": String(b.peak_bytes) }, formatBytes(b.peak_bytes)),
      " peak: ",
      el(
        `strong.${change > 0 ? "more" : change < 0 ? "less" : "same"}`,
        { "data-bytes": String(change) },
        change ? `${formatBytes(change, true)} (${formatShare(change, a.peak_bytes, true)})` : "no difference",
      ),
    );
  }

  hover(chart, index, time, event) {
    this.charts.forEach(({ plot }) => plot.point(time));
    if (index === null) return hideTooltip();
    const entries = this.charts.map((each) => each.entry(each.plot.indexAt(time)));
    const kinds = this.context.kinds.filter(({ key }) => entries.some(({ categories }) => categories[key]));
    const [a, b] = entries;
    return showTooltip(event, [
      el(
        "strong",
        {},
        this.bySteps()
          ? formatPlace(Math.round(time))
          : `${formatInstant(Math.round(time))} · step ${a.step || "–"} / ${b.step || "–"}`,
      ),
      ["allocated", `${formatBytes(a.allocated)} → ${formatBytes(b.allocated)}`],
      ...kinds.map(({ key, label }) => [
        label,
        `${formatBytes(a.categories[key] ?? 0)} → ${formatBytes(b.categories[key] ?? 0)}`,
      ]),
    ]);
  }

  hoverLines(index, event) {
    if (index === null) {
      this.lines.plot.point(null);
      return hideTooltip();
    }
    const time = this.lines.plot.chart.data[0][index];
    this.lines.plot.point(time);
    const text = (value) => (value === null ? "ended" : formatBytes(value));
    const [a, b] = this.lines.values(index);
    return showTooltip(event, [
      el("strong", {}, this.bySteps() ? formatPlace(time) : formatInstant(time)),
      ["baseline", text(a)],
      ["variant", text(b)],
      a !== null && b !== null ? ["difference", formatBytes(b - a, true)] : null,
    ]);
  }

  /** What was alive there is shown in the timeline. */
  pick(chart, index) {
    const { run, rank } = chart.side;
    const answer = this.answers[this.charts.indexOf(chart)]; // with times, whatever the axis shows
    this.state.set({
      run: run.run,
      view: "timeline",
      rank: rank.key,
      at: answer.time[Math.min(index, answer.time.length - 1)],
      offset: 0,
    });
  }

  swap() {
    const [a, b] = this.sides();
    this.state.set({ run: b.run.run, rank: b.rank.key, with: a.run.run, with_rank: a.rank.key });
  }

  onWindow(window) {
    this.state.set(asState(window, this.span, this.kept()));
  }

  key(key) {
    const window = afterKey(key, windowOf(this.state, this.span, this.kept()), this.span);
    if (window) this.onWindow(window);
    return Boolean(window);
  }

  update(changed) {
    if (["run", "rank", "with", "with_rank", "curves", "axis"].some((name) => changed.has(name))) {
      this.build();
      this.load();
    } else if (this.kept().some((name) => changed.has(name))) {
      const window = windowOf(this.state, this.span, this.kept());
      for (const { plot } of this.lines ? [this.lines] : this.charts) plot.look(window);
      this.load();
    }
  }

  redraw() {
    if (this.answers) this.draw();
  }

  start() {
    this.build();
    this.load();
  }

  refresh() {
    this.load();
  }

  destroy() {
    this.charts.forEach((chart) => chart.destroy());
    this.lines?.destroy();
    hideTooltip();
  }
}

function name({ run, rank }) {
  const text = run.run === "." ? run.name : run.run;
  return run.ranks.length > 1 ? `${text}, rank ${rankName(rank)}` : text;
}
