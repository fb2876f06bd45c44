/** Several curves on one axis: all ranks, or two runs. */

import { colour } from "../theme.js";
import { Plot, stepped } from "./plot.js";

const HEADROOM = 1.06;

export class LineChart {
  /** @param options those of `Plot`, without series; and `paints`, one per curve: a colour, or a name of the theme's. */
  constructor(host, { paints, ...options }) {
    this.focused = -1;
    this.paints = paints;
    this.plot = new Plot(host, {
      ...options,
      series: paints.map((paint, number) => ({
        paths: stepped,
        points: { show: false },
        width: 1.5,
        stroke: () => {
          const shown = paint.startsWith("#") ? paint : colour(paint);
          return this.focused < 0 || this.focused === number ? shown : `${shown}40`;
        },
      })),
    });
  }

  /** @param curves `{time, bytes}` each, whose levels hold until the next entry. */
  show(curves, { window, span, marks = {} }) {
    const times = [...new Set([...curves.flatMap(({ time }) => time), window[1]])].sort((a, b) => a - b);
    const columns = curves.map(({ time, bytes, end = Infinity }) => {
      let at = -1;
      return times.map((now) => {
        while (at + 1 < time.length && time[at + 1] <= now) at++;
        return at < 0 || now > end ? null : bytes[at];
      });
    });
    const most = columns.flat().reduce((highest, value) => (value > highest ? value : highest), 1);
    this.plot.show([times, ...columns], { window, span, most: most * HEADROOM, marks });
  }

  values(index) {
    return this.plot.chart.data.slice(1).map((column) => column[index]);
  }

  focus(number) {
    this.focused = number;
    this.plot.redraw();
  }

  destroy() {
    this.plot.destroy();
  }
}
