/** The part of the time axis that is looked at. A window is `[from, to]` in nanoseconds, of whole numbers. */

const LEAST_NS = 20;

/** The window of a state within a span; without one, all of it. Where it is kept may be said. */
export function windowOf(state, span, [first, last] = ["from", "to"]) {
  const from = state.get(first);
  const to = state.get(last);
  if (from === null || to === null || to <= from) return [span[0], Math.max(span[1], span[0] + 1)]; // of a single instant, too
  return clamp([from, to], span);
}

/** The same window, moved and cut so that it lies in the span. */
export function clamp([from, to], [first, last]) {
  const width = Math.min(Math.max(Math.round(to - from), LEAST_NS), Math.max(last - first, 1));
  const start = Math.round(Math.min(Math.max(from, first), last - width));
  return [start, start + width];
}

/** Larger by a factor below 1, smaller by one above, about a time that stays where it is. */
export function zoomed([from, to], factor, about, span) {
  const width = Math.max((to - from) * factor, LEAST_NS);
  const share = (about - from) / Math.max(to - from, 1);
  return clamp([about - share * width, about - share * width + width], span);
}

/** Moved by a part of its width. */
export function panned([from, to], part, span) {
  const shift = (to - from) * part;
  return clamp([from + shift, to + shift], span);
}

/** What to put into the state: nothing, when all is to be seen. */
export function asState([from, to], [first, last], [low, high] = ["from", "to"]) {
  const isAll = from <= first && to >= last;
  return { [low]: isAll ? null : from, [high]: isAll ? null : to };
}

/** The window after a key: zoomed, moved, or all of the span; null if the key means nothing. */
export function afterKey(key, window, span) {
  const middle = (window[0] + window[1]) / 2;
  const windows = {
    "+": () => zoomed(window, 0.5, middle, span),
    "-": () => zoomed(window, 2, middle, span),
    ArrowLeft: () => panned(window, -0.2, span),
    ArrowRight: () => panned(window, 0.2, span),
    0: () => span,
  };
  return windows[key === "=" ? "+" : key]?.() ?? null;
}
