/** Bytes against time, by uPlot: axes, step marks, phases, peak and crosshair, which all our charts have alike. */

import uPlot from "../vendor/uPlot.esm.js";
import { colour } from "../theme.js";
import { formatBytes, formatTime } from "../units.js";
import { navigate } from "./navigate.js";

const BYTE_STEPS = Array.from({ length: 51 }, (_, power) => 2 ** power);
const TIME_STEPS = Array.from({ length: 19 }, (_, power) => [1, 2, 5].map((digit) => digit * 10 ** power)).flat();
const FONT = "11px system-ui, sans-serif";
const STRIP_PX = 16;
const LEAST_LABEL_PX = 44;
export const AXIS_PX = 74;
export const RIGHT_PX = 24;

export class Plot {
  /**
   * @param host the element to fill; its width is the chart's.
   * @param options `height`, `label` (for those who cannot see it), `series` (uPlot's, without x), and the
   *   actions of `navigate`: onWindow, onPick, onHover(index | null, time, event). With `paint(ctx, box, across)`
   *   the area is the caller's to fill, and there is no axis of bytes. `textOf` writes the marks of the other axis.
   */
  constructor(host, { height, label, series = [], paint = null, textOf = formatTime, onWindow, onPick, onHover }) {
    this.host = host;
    this.height = height;
    this.paint = paint;
    this.textOf = textOf;
    this.window = [0, 1];
    this.span = [0, 1];
    this.most = 1;
    this.marks = { steps: [], phases: [], peak: null, picked: null };
    host.classList.add("plot");
    host.tabIndex = 0;
    host.setAttribute("role", "img");
    host.setAttribute("aria-label", label);
    this.chart = new uPlot(this.options(series), [[0, 1], ...series.map(() => [null, null])], host);
    this.crosshair = document.createElement("div");
    this.crosshair.className = "crosshair";
    this.crosshair.hidden = true;
    this.chart.over.append(this.crosshair);
    navigate(
      this.chart.over,
      { window: () => this.window, span: () => this.span },
      {
        onWindow: onWindow && ((window) => onWindow(window)),
        onPick: onPick && ((time, event) => onPick(this.indexAt(time), time, event)),
        onHover: onHover && ((time, event) => onHover(time === null ? null : this.indexAt(time), time, event)),
      },
    );
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(host);
  }

  options(series) {
    const ink = () => colour("muted");
    const grid = { stroke: () => colour("grid"), width: 1 };
    const ticks = { stroke: () => colour("grid"), size: 5 };
    return {
      width: Math.max(this.host.clientWidth, 200),
      height: this.height,
      padding: [22, RIGHT_PX, 0, 0],
      legend: { show: false },
      cursor: { show: false },
      focus: { alpha: 1 },
      scales: {
        x: { time: false, auto: false, range: () => this.window },
        y: { auto: false, range: () => [0, this.most] },
      },
      series: [{}, ...series],
      axes: [
        {
          stroke: ink,
          grid,
          ticks: { ...ticks, size: STRIP_PX + 4 },
          font: FONT,
          size: STRIP_PX + 28,
          gap: 2,
          incrs: TIME_STEPS,
          space: 90,
          values: (_, splits) => splits.map((time) => this.textOf(time, splits[1] - splits[0] || 1e9, this.window[1])),
        },
        {
          show: true,
          stroke: ink,
          grid: { ...grid, show: !this.paint },
          ticks: { ...ticks, show: !this.paint },
          font: FONT,
          size: AXIS_PX,
          gap: 4,
          incrs: BYTE_STEPS,
          space: 40,
          values: (_, splits) => splits.map((bytes) => (this.paint ? "" : formatBytes(bytes).replace(".00", ""))),
        },
      ],
      hooks: { draw: [(chart) => this.decorate(chart)] },
    };
  }

  /** Show columns, the first of them times. */
  show(columns, { window, span, most, marks = {} }) {
    this.window = window;
    this.span = span;
    this.most = Math.max(most, 1);
    this.marks = { steps: [], phases: [], peak: null, picked: null, end: Infinity, ...marks };
    this.chart.setData(columns, false);
    this.rescale();
  }

  /** Move at once over what is there, while the rest is being asked for. */
  look(window) {
    this.window = window;
    this.rescale();
  }

  mark(changes) {
    Object.assign(this.marks, changes);
    this.redraw();
  }

  rescale() {
    this.chart.batch(() => {
      this.chart.setScale("x", { min: this.window[0], max: this.window[1] });
      this.chart.setScale("y", { min: 0, max: this.most });
    });
  }

  redraw() {
    this.chart.redraw(false, true);
  }

  resize(height = this.height) {
    const width = this.host.clientWidth;
    const isOther = width !== this.chart.width || height !== this.height;
    this.height = height;
    if (width && isOther) this.chart.setSize({ width, height: this.height });
  }

  /** The last entry that is not after a time: levels hold until the next one. */
  indexAt(time) {
    const times = this.chart.data[0];
    let low = 0;
    let high = times.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (times[middle] <= time) low = middle + 1;
      else high = middle;
    }
    return Math.max(low - 1, 0);
  }

  /** Put the crosshair to a time; null takes it away. */
  point(time) {
    const [from, to] = this.window;
    this.crosshair.hidden = time === null || time < from || time > to;
    if (!this.crosshair.hidden) this.crosshair.style.left = `${((time - from) / (to - from)) * 100}%`;
  }

  destroy() {
    this.observer.disconnect();
    this.chart.destroy();
  }

  // -- what lies over the curves ---------------------------------------------------------------

  decorate(chart) {
    const { ctx } = chart;
    const { left, top, width, height } = chart.bbox;
    const ratio = uPlot.pxRatio;
    const across = (time) => chart.valToPos(time, "x", true);
    ctx.save();
    ctx.setLineDash([]); // a curve may have left its own
    ctx.beginPath();
    ctx.rect(left - 6 * ratio, 0, width + 12 * ratio, top + height + (STRIP_PX + 4) * ratio);
    ctx.clip();
    ctx.font = FONT.replace("11", String(11 * ratio));
    this.paint?.(ctx, { left, top, width, height, ratio }, across);
    this.drawPhases(ctx, across, top + height + 3 * ratio, ratio);
    this.drawSteps(ctx, across, top, height, ratio);
    const { peak, picked } = this.marks;
    if (picked !== null) {
      ctx.strokeStyle = ctx.fillStyle = colour("accent");
      ctx.lineWidth = 1.5 * ratio;
      line(ctx, across(picked), top - 6 * ratio, top + height);
      ctx.beginPath();
      ctx.arc(across(picked), top - 6 * ratio, 4 * ratio, 0, 2 * Math.PI);
      ctx.fill();
    }
    if (peak) this.drawPeak(ctx, across(peak.time), chart.valToPos(peak.bytes, "y", true), ratio, left + width);
    ctx.restore();
  }

  drawPhases(ctx, across, y, ratio) {
    const { phases, phasesLeftOut } = this.marks;
    if (phasesLeftOut) this.writePhase(ctx, "phases: zoom in", ...this.window.map(across), y, ratio);
    const last = Math.min(this.window[1], this.marks.end); // shorter runs end before the window does
    phases.forEach(([time, phase], number) => {
      const start = across(Math.max(time, this.window[0]));
      const end = across(Math.min(phases[number + 1]?.[0] ?? last, last));
      if (end < start) return;
      ctx.fillStyle = colour(`phase-${phase}`) || colour("grid");
      ctx.fillRect(start, y, Math.max(end - start, 0.5), (STRIP_PX - 2) * ratio);
      this.writePhase(ctx, phase, start, end, y, ratio);
    });
  }

  writePhase(ctx, text, start, end, y, ratio) {
    if (end - start <= ctx.measureText(text).width + 8 * ratio) return;
    ctx.fillStyle = colour("phase-ink");
    ctx.textBaseline = "middle";
    ctx.textAlign = "center";
    ctx.fillText(text, (start + end) / 2, y + (STRIP_PX / 2 - 0.5) * ratio);
  }

  drawSteps(ctx, across, top, height, ratio) {
    let free = -Infinity;
    const right = across(this.window[1]) + 6 * ratio; // what is drawn ends there
    ctx.textBaseline = "alphabetic";
    ctx.textAlign = "left";
    for (const [step, time] of this.marks.steps) {
      const x = across(time);
      if (time < this.window[0] || time > this.window[1]) continue;
      if (x < free) continue; // marks that cannot be told apart tell nothing
      ctx.strokeStyle = colour("step");
      ctx.lineWidth = ratio;
      line(ctx, Math.round(x) + 0.5, top - 12 * ratio, top + height);
      ctx.fillStyle = colour("muted");
      const text = `step ${step}`;
      const width = ctx.measureText(text).width;
      if (x + 4 * ratio + width <= right) ctx.fillText(text, x + 4 * ratio, top - 4 * ratio);
      free = x + Math.max(width + 10 * ratio, LEAST_LABEL_PX * ratio);
    }
  }

  drawPeak(ctx, x, y, ratio, right) {
    ctx.beginPath();
    ctx.arc(x, y, 4 * ratio, 0, 2 * Math.PI);
    ctx.fillStyle = colour("surface");
    ctx.fill();
    ctx.lineWidth = 2 * ratio;
    ctx.strokeStyle = colour("text");
    ctx.stroke();
    const text = `peak ${formatBytes(this.marks.peak.bytes)}`;
    const width = ctx.measureText(text).width + 10 * ratio;
    const box = x + 8 * ratio + width < right ? x + 8 * ratio : x - 8 * ratio - width;
    const middle = Math.max(y, 10 * ratio);
    ctx.fillStyle = colour("surface");
    ctx.globalAlpha = 0.88;
    ctx.fillRect(box, middle - 9 * ratio, width, 18 * ratio);
    ctx.globalAlpha = 1;
    ctx.fillStyle = colour("text");
    ctx.textAlign = "left";
    ctx.textBaseline = "middle";
    ctx.fillText(text, box + 5 * ratio, middle);
  }
}

function line(ctx, x, top, bottom) {
  ctx.beginPath();
  ctx.moveTo(x, top);
  ctx.lineTo(x, bottom);
  ctx.stroke();
}

/** uPlot's path of a level that holds until the next entry. */
export const stepped = uPlot.paths.stepped({ align: 1 });
