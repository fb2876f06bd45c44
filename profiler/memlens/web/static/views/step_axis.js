/** Time counted in steps: on such an axis, runs of different speed lie upon each other. */

/** Of the axis, for one step. */
const STEP = 1e9;

export class StepAxis {
  /** @param steps rows of the answer to `steps`; what lies between them is shared out evenly. */
  constructor(steps) {
    const last = steps[steps.length - 1];
    this.times = [...steps.map(({ start }) => start), last.end];
    this.places = [...steps.map(({ step }) => step * STEP), (last.step + 1) * STEP];
  }

  toAxis(time) {
    return Math.round(along(this.times, this.places, time));
  }

  toTime(place) {
    return Math.max(Math.round(along(this.places, this.times, place)), 0);
  }

  /** An answer to `timeline` with places for times. */
  laid(answer) {
    const at = (time) => this.toAxis(time);
    const level = (moment) => moment && { ...moment, time: at(moment.time) };
    return {
      ...answer,
      span: answer.span.map(at),
      from: at(answer.from),
      to: at(answer.to),
      time: answer.time.map(at),
      steps: answer.steps.map(([step, time]) => [step, at(time)]),
      phases: answer.phases.map(([time, phase]) => [at(time), phase]),
      peak: level(answer.peak),
      window_peak: level(answer.window_peak),
    };
  }
}

/** On a line through knots; beyond them it goes on as it was. */
function along(from, to, value) {
  let high = 1;
  while (high < from.length - 1 && from[high] <= value) high++;
  const width = from[high] - from[high - 1];
  return width ? to[high - 1] + ((value - from[high - 1]) / width) * (to[high] - to[high - 1]) : to[high];
}

/** Says a place: "step 3", "step 3.25". */
export function formatPlace(place) {
  return `step ${Number((place / STEP).toFixed(3))}`;
}
