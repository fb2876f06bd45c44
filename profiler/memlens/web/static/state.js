/** What is being looked at, kept in the address, so that a view can be reloaded and passed on. */

const DEFAULTS = {
  run: null,
  rank: null,
  view: "timeline",
  layout: "rank",
  from: null,
  to: null,
  at: null,
  category: "",
  search: "",
  sort: "size",
  descending: true,
  offset: 0,
  with: null,
  with_rank: null,
  module: "",
  curves: "areas",
  axis: "steps",
  step_from: null,
  step_to: null,
  theme: "auto",
};
const NUMBERS = new Set(["from", "to", "step_from", "step_to", "at", "offset"]);
/** What says nothing of another run. */
const OF_A_RUN = {
  rank: null,
  from: null,
  to: null,
  step_from: null,
  step_to: null,
  at: null,
  offset: 0,
  search: "",
  module: "",
};

export class State {
  /** @param place where the address is kept; see `address.js`. */
  constructor(place) {
    this.place = place;
    this.listeners = [];
    this.values = { ...DEFAULTS, ...parse(place.read()) };
  }

  get(name) {
    return this.values[name];
  }

  /** Change some values; listeners learn the names of those that are different now. */
  set(changes) {
    const wanted = "run" in changes && changes.run !== this.values.run ? { ...OF_A_RUN, ...changes } : changes;
    const names = Object.keys(wanted).filter((name) => this.values[name] !== wanted[name]);
    if (!names.length) return;
    for (const name of names) this.values[name] = wanted[name];
    this.place.write(print(this.values));
    const changed = new Set(names);
    for (const listener of [...this.listeners]) listener(changed);
  }

  listen(listener) {
    this.listeners.push(listener);
  }
}

function parse(text) {
  const found = {};
  for (const [name, value] of new URLSearchParams(text)) {
    if (!(name in DEFAULTS)) continue;
    if (NUMBERS.has(name)) {
      if (/^-?\d{1,16}$/.test(value)) found[name] = Number(value);
    } else found[name] = name === "descending" ? value !== "0" : value;
  }
  return found;
}

function print(values) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    if (value === DEFAULTS[name]) continue;
    parameters.set(name, name === "descending" ? (value ? "1" : "0") : String(value));
  }
  return parameters.toString();
}
