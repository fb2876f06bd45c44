/** The stacked area: what each category holds over time, with what was reserved, and the card's capacity. */

import { colour } from "../theme.js";
import { Plot, stepped } from "./plot.js";

const HEADROOM = 1.06;
const CAPACITY_IN_SIGHT = 0.5;

export class AreaChart {
  /** @param options those of `Plot`, without series; and `kinds`, the series that the server names. */
  constructor(host, { kinds, ...options }) {
    this.kinds = kinds;
    this.answer = null;
    this.category = "";
    const top = [...kinds].reverse(); // the highest is drawn first, and the lower ones over it
    this.plot = new Plot(host, {
      ...options,
      series: [
        ...top.map(({ key, colour: paint }) => ({
          paths: stepped,
          points: { show: false },
          width: 0.75,
          stroke: () => (this.has(key) ? colour("surface") : null),
          fill: () => (this.has(key) ? this.paint(key, paint) : null),
        })),
        { paths: stepped, points: { show: false }, width: 0.75, stroke: () => colour("outline") },
        { paths: stepped, points: { show: false }, width: 1.5, dash: [6, 3], stroke: () => colour("reserved") },
        { paths: stepped, points: { show: false }, width: 1.5, dash: [2, 3], stroke: () => colour("capacity") },
      ],
    });
  }

  has(key) {
    return this.answer?.categories[key] !== undefined;
  }

  paint(key, paint) {
    if (!this.category || this.category === key) return paint;
    return `${mix(paint, colour("surface"), 0.78)}`;
  }

  /** The most bytes that the chart of an answer has to show. */
  static most(answer) {
    const most = largest(answer.reserved ?? [], largest(answer.allocated, 1));
    const capacity = answer.capacity_bytes;
    return capacity && most >= capacity * CAPACITY_IN_SIGHT ? Math.max(most, capacity) : most;
  }

  /** Show an answer to `timeline`. `most` may be that of several charts, so that they share an axis. */
  show(
    answer,
    {
      most = AreaChart.most(answer),
      category = "",
      picked = null,
      window = [answer.from, answer.to],
      span = answer.span,
    } = {},
  ) {
    this.answer = answer;
    this.category = category;
    const times = [...answer.time, answer.to];
    const total = new Float64Array(times.length);
    const cumulated = new Map();
    for (const { key } of this.kinds) {
      const column = answer.categories[key];
      if (column) for (let i = 0; i < times.length; i++) total[i] += column[Math.min(i, column.length - 1)];
      cumulated.set(key, Array.from(total));
    }
    const held = (column) => (column ? [...column, column[column.length - 1]] : times.map(() => null));
    const capacity = answer.capacity_bytes && most >= answer.capacity_bytes ? answer.capacity_bytes : null;
    this.plot.show(
      [
        times,
        ...[...this.kinds].reverse().map(({ key }) => cumulated.get(key)),
        held(answer.allocated),
        held(answer.reserved),
        times.map(() => capacity),
      ],
      {
        window,
        span,
        most: most * HEADROOM,
        marks: {
          steps: answer.steps,
          phases: answer.phases,
          phasesLeftOut: answer.phases_left_out,
          picked,
          end: answer.span[1],
          peak: answer.window_peak && { time: answer.window_peak.time, bytes: answer.window_peak.allocated_bytes },
        },
      },
    );
  }

  /** What one entry says. */
  entry(index) {
    const { answer } = this;
    const at = Math.min(index, answer.time.length - 1);
    return {
      time: answer.time[at],
      allocated: answer.allocated[at],
      reserved: answer.reserved?.[at] ?? null,
      categories: Object.fromEntries(Object.entries(answer.categories).map(([key, column]) => [key, column[at]])),
      ...placeAt(answer, answer.time[at]),
    };
  }

  /** Which band of the stack the pointer is in. */
  bandAt(entry, event) {
    const { chart } = this.plot;
    const wanted = chart.posToVal(event.clientY - chart.over.getBoundingClientRect().top, "y");
    let sum = 0;
    for (const { key, label } of this.kinds) {
      const bytes = entry.categories[key] ?? 0;
      sum += bytes;
      if (bytes && wanted <= sum) return { label, bytes };
    }
    return null;
  }

  destroy() {
    this.plot.destroy();
  }
}

/** Step and phase at a time, as far as the answer's marks tell: they may be thinned out. */
function placeAt(answer, time) {
  const step = lastBefore(answer.steps, time, 1);
  const phase = lastBefore(answer.phases, time, 0);
  const next = answer.steps[answer.steps.indexOf(step) + 1];
  const isThinned = step && next && next[0] > step[0] + 1;
  return {
    step: step ? (isThinned ? `${step[0]}–${next[0] - 1}` : String(step[0])) : "",
    phase: phase ? phase[1] : "",
  };
}

function lastBefore(rows, time, column) {
  let found = null;
  for (const row of rows) {
    if (row[column] > time) break;
    found = row;
  }
  return found;
}

function largest(column, least) {
  return column.reduce((most, value) => (value > most ? value : most), least);
}

/** `#RRGGBB`, a share of the way to another. */
function mix(from, to, share) {
  const parts = (text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
  const [a, b] = [parts(from), parts(to)];
  return `rgb(${a.map((value, at) => Math.round(value + (b[at] - value) * share)).join(",")})`;
}
