/** Bytes and times as text: the same text, to the letter, as `memlens.units` writes. */

/** Round as Python does: a value exactly in the middle goes to the even neighbour. */
function fixed(value, digits) {
  const isTie = Math.abs(value * 2 ** (digits + 1)) % 2 === 1;
  if (!isTie) return value.toFixed(digits);
  const scaled = Math.floor(value * 10 ** digits);
  return ((scaled % 2 ? scaled + 1 : scaled) / 10 ** digits).toFixed(digits);
}

/** "512 B", "1.50 MiB"; with `signed`, a plus before what is positive. */
export function formatBytes(bytes, signed = false) {
  const sign = bytes < 0 ? "-" : signed && bytes > 0 ? "+" : "";
  let value = Math.abs(bytes);
  if (value < 1024) return `${sign}${Math.trunc(value)} B`;
  for (const unit of ["KiB", "MiB", "GiB", "TiB"]) {
    value /= 1024;
    if (value < 1023.995 || unit === "TiB") return `${sign}${fixed(value, 2)} ${unit}`;
  }
}

/** "850 ns", "12.3 ms", "4.56 s", "2 min 05 s". */
export function formatDuration(ns) {
  if (ns < 1e3) return `${ns} ns`;
  if (ns < 1e6) return `${fixed(ns / 1e3, 1)} µs`;
  if (ns < 1e9) return `${fixed(ns / 1e6, 1)} ms`;
  const seconds = ns / 1e9;
  if (seconds < 60) return `${fixed(seconds, 2)} s`;
  const whole = Number(fixed(seconds, 0));
  return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
}

/** A time on an axis whose marks are `stepNs` apart and that ends at `endNs`: as many digits as tell marks apart. */
export function formatTime(ns, stepNs, endNs) {
  const [factor, unit] = endNs >= 1e9 ? [1e9, "s"] : endNs >= 1e6 ? [1e6, "ms"] : [1e3, "µs"];
  const digits = Math.max(0, Math.min(9, Math.ceil(-Math.log10(stepNs / factor) - 1e-9)));
  return `${grouped((ns / factor).toFixed(digits))} ${unit}`;
}

/** An instant, to the microsecond: "12.345678 s". */
export function formatInstant(ns) {
  return `${grouped((ns / 1e9).toFixed(6))} s`;
}

/** "1,234,567". */
export function formatCount(count) {
  return grouped(String(count));
}

/** "12.3 %"; "+12.3 %" with `signed`. */
export function formatShare(part, whole, signed = false) {
  if (!whole) return "";
  const share = (100 * part) / whole;
  return `${signed && share > 0 ? "+" : ""}${share.toFixed(1)} %`;
}

function grouped(text) {
  const [whole, rest] = text.split(".");
  const parts = whole.replace(/\B(?=(\d{3})+(?!\d))/g, ",");
  return rest === undefined ? parts : `${parts}.${rest}`;
}
