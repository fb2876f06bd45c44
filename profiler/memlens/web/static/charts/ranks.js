/** How ranks are named and coloured. */

/** A way from blue to yellow that all eyes can follow, and that no category wears. */
const STOPS = [
  [59, 82, 139],
  [86, 92, 160],
  [136, 105, 158],
  [190, 116, 140],
  [226, 141, 108],
  [238, 184, 92],
];

export function rankColour(number, count) {
  const place = (count > 1 ? number / (count - 1) : 0) * (STOPS.length - 1);
  const low = Math.min(Math.floor(place), STOPS.length - 2);
  const parts = STOPS[low].map((from, at) => Math.round(from + (STOPS[low + 1][at] - from) * (place - low)));
  return `#${parts.map((part) => part.toString(16).padStart(2, "0")).join("")}`;
}

/** A rank's number; and which start of the job or which of its devices it is, if there are several. */
export function rankName({ key, rank, launch, device }) {
  if (launch) return `${rank}, start ${launch + 1}`;
  return key.includes(".") ? `${rank} on ${device}` : String(rank);
}
