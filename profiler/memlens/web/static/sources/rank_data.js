/** One rank of an exported file: its curves, and the columns of its blocks. */

import { sorted } from "./order.js";

const MOST_FRAMES = 32;
const MOST_PARTS = 20;

export class RankData {
  /** @param told the rank as it was written. @param series the categories, in the order that numbers mean. */
  constructor(told, series) {
    this.told = told;
    this.series = series;
    const { curve, blocks } = told;
    this.time = running(curve.time);
    this.allocated = running(curve.allocated);
    this.reserved = told.reserved && { time: running(told.reserved.time), level: running(told.reserved.level) };
    this.categories = Object.fromEntries(
      Object.entries(curve.categories).map(([key, changes]) => [key, running(changes)]),
    );
    this.blocks = { ...blocks, row: running(blocks.row), born: running(blocks.born) };
    this.atPeak = new Set(running(told.at_peak));
    this.parts = new Map(blocks.parts.map(([number, parts]) => [number, parts]));
  }

  freed(number) {
    const lived = this.blocks.lived[number];
    return lived < 0 ? null : this.blocks.born[number] + lived;
  }

  // -- curves ----------------------------------------------------------------------------------

  /** Entries of a window: the level at its beginning, and of each bucket the highest and the last. */
  sample([from, to], points) {
    const begin = after(this.time, from);
    const end = after(this.time, to);
    const chosen = [];
    const isExact = end - begin <= points - 1;
    if (isExact) for (let at = begin; at < end; at++) chosen.push(at);
    else {
      const columns = Math.max(Math.floor((points - 1) / 2), 1);
      let low = begin;
      for (let column = 1; column <= columns && low < end; column++) {
        const high =
          column === columns ? end : Math.max(after(this.time, from + ((to - from) * column) / columns), low);
        if (high === low) continue;
        let best = low;
        for (let at = low; at < high; at++) if (this.allocated[at] > this.allocated[best]) best = at;
        chosen.push(best);
        if (best !== high - 1) chosen.push(high - 1);
        low = high;
      }
    }
    const level = (column) => [begin ? column[begin - 1] : 0, ...chosen.map((at) => column[at])];
    return {
      time: [from, ...chosen.map((at) => this.time[at])],
      allocated: level(this.allocated),
      entries: [begin - 1, ...chosen],
      level,
      isExact,
    };
  }

  timeline(window, points) {
    const { told } = this;
    const span = [0, told.total];
    const [from, to] = clip(window ?? span, span);
    const { time, allocated, level, isExact, entries } = this.sample([from, to], points);
    const categories = Object.fromEntries(
      Object.entries(this.categories)
        .map(([key, column]) => [key, level(column)])
        .filter(([, column]) => column.some(Boolean)),
    );
    const highest = allocated.reduce((best, bytes, at) => (bytes > allocated[best] ? at : best), 0);
    const steps = told.step_starts.filter(([, start]) => start >= from && start <= to);
    const stride = Math.ceil(steps.length / 300) || 1;
    const first = Math.max(told.phases.findIndex(([when]) => when > from) - 1, 0);
    const phases = (
      told.phases.length && told.phases[told.phases.length - 1][0] <= from
        ? told.phases.slice(-1)
        : told.phases.slice(first)
    ).filter(([when]) => when <= to);
    const tooMany = phases.length > 400;
    return {
      span,
      from,
      to,
      time,
      allocated,
      categories,
      reserved: this.reservedOver(time, isExact && told.curve.exact),
      capacity_bytes: told.capacity_bytes,
      exact: isExact && told.curve.exact,
      steps: steps.filter(([step]) => step % stride === 0),
      phases: tooMany ? [] : phases.map(([when, phase]) => [Math.max(when, from), phase]),
      phases_left_out: tooMany ? phases.length : 0,
      peak: told.peak,
      window_peak: {
        ...this.place(entries[highest] < 0 ? 0 : this.time[entries[highest]]),
        time: time[highest],
        allocated_bytes: allocated[highest],
      },
    };
  }

  /** The most that was reserved from each entry to the next; of all events, what was reserved then. */
  reservedOver(entries, isExact) {
    if (!this.reserved) return null;
    const { time, level } = this.reserved;
    return entries.map((begin, at) => {
      const end = isExact ? begin : (entries[at + 1] ?? begin);
      let place = after(time, begin);
      let most = place ? level[place - 1] : 0;
      for (; place < time.length && time[place] < end; place++) most = Math.max(most, level[place]);
      return most;
    });
  }

  /** What the job was doing. At the peak the module is known, too. */
  place(time) {
    const { told } = this;
    if (time === told.peak.time) return { step: told.peak.step, phase: told.peak.phase, module: told.peak.module };
    return {
      step: lastBefore(told.step_changes, time, 1)?.[0] ?? 0,
      phase: lastBefore(told.phases, time, 0)?.[1] ?? "",
      module: "",
    };
  }

  allocatedAt(time) {
    const at = after(this.time, time) - 1;
    return at < 0 ? 0 : this.allocated[at];
  }

  // -- blocks ----------------------------------------------------------------------------------

  /** Numbers of the blocks in this file that are alive at a time; without one, at the peak. */
  aliveAt(time) {
    const found = [];
    for (let number = 0; number < this.blocks.born.length; number++) {
      const freed = time === null ? null : this.freed(number);
      const isAlive =
        time === null ? this.atPeak.has(number) : this.blocks.born[number] <= time && (freed === null || freed > time);
      if (isAlive) found.push(number);
    }
    return found;
  }

  moment(time) {
    return time === null
      ? this.told.peak
      : { time: Math.min(time, this.told.total), allocated_bytes: this.allocatedAt(time), ...this.place(time) };
  }

  alive({ time = null, category = "", search = "", sort = "size", descending = 1, offset = 0, limit = 100 }) {
    const moment = this.moment(time);
    const all = this.aliveAt(time);
    const held = all.reduce((total, number) => total + this.blocks.size[number], 0);
    const wanted = search.toLowerCase();
    const kind = this.series.findIndex(({ key }) => key === category);
    const matching = all.filter(
      (number) =>
        (!category || this.blocks.category[number] === kind) && (!wanted || this.texts(number).includes(wanted)),
    );
    const page = sorted(this, matching, sort, Boolean(Number(descending))).slice(offset, offset + limit);
    const rest = this.told.left_out.count ? moment.allocated_bytes - held : 0;
    return {
      ...moment,
      count: all.length,
      left_out: rest ? { size_bytes: rest } : null,
      matching: {
        count: matching.length,
        size_bytes: matching.reduce((total, number) => total + this.blocks.size[number], 0),
      },
      rows: page.map((number) => this.row(number)),
      stacks: Object.fromEntries(
        page.map((number) => [this.blocks.stack[number], this.stack(this.blocks.stack[number]).slice(0, MOST_FRAMES)]),
      ),
    };
  }

  name(number) {
    return this.told.names[this.blocks.name[number]];
  }

  module(number) {
    return this.told.modules[this.blocks.module[number]][0];
  }

  op(number) {
    const stack = this.told.stacks[this.blocks.stack[number]];
    return stack.length ? this.told.functions[this.told.frames[stack[0]][0]] : "";
  }

  /** Innermost frame first. */
  stack(number) {
    const { stacks, frames, functions, places } = this.told;
    return stacks[number].map((frame) => `${functions[frames[frame][0]]} ${places[frames[frame][1]]}`);
  }

  texts(number) {
    const { key, label } = this.series[this.blocks.category[number]];
    return [this.name(number), this.module(number), key, label, ...this.stack(this.blocks.stack[number])]
      .join("\n")
      .toLowerCase();
  }

  row(number) {
    const { blocks, told } = this;
    const parts = [...(this.parts.get(number) ?? [])].sort((a, b) => b[2] - a[2]).slice(0, MOST_PARTS);
    return {
      row: blocks.row[number],
      size_bytes: blocks.size[number],
      requested_bytes: blocks.requested[number],
      category: this.series[blocks.category[number]].key,
      certainty: told.certainties[blocks.certainty[number]],
      name: this.name(number),
      module: this.module(number),
      op: this.op(number),
      step: blocks.step[number],
      phase: told.phase_names[blocks.phase[number]],
      rank: told.rank,
      born: blocks.born[number],
      freed: this.freed(number),
      preexisting: Boolean(blocks.preexisting[number]),
      stack: blocks.stack[number],
      parts: parts.map(([name, module, size]) => [told.names[name], told.modules[module]?.[0] ?? "", size]),
    };
  }

  /** What each module holds itself; a block that several share counts by its parts. */
  modules(time) {
    const { blocks, told } = this;
    const held = new Map();
    const add = (module, category, bytes) => {
      if (!bytes) return;
      const [name, className] = told.modules[module];
      if (!held.has(name)) held.set(name, { module: name, class_name: className, categories: {} });
      const { categories } = held.get(name);
      const { key } = this.series[category];
      categories[key] = (categories[key] ?? 0) + bytes;
    };
    let total = 0;
    for (const number of this.aliveAt(time)) {
      let rest = blocks.size[number];
      total += rest;
      for (const [, module, size] of this.parts.get(number) ?? []) {
        add(module < 0 ? blocks.module[number] : module, blocks.category[number], size);
        rest -= size;
      }
      add(blocks.module[number], blocks.category[number], rest);
    }
    const moment = this.moment(time);
    return {
      time: moment.time,
      allocated_bytes: moment.allocated_bytes,
      modules: [...held.values()],
      left_out: { count: 0, size_bytes: moment.allocated_bytes - total },
    };
  }

  lifetimes(window, { limit = 1500, category = "" }) {
    const { blocks, told } = this;
    const [from, to] = clip(window ?? [0, told.total], [0, told.total]);
    const kind = this.series.findIndex(({ key }) => key === category);
    const inside = [];
    for (let number = 0; number < blocks.born.length; number++) {
      const freed = this.freed(number);
      if (
        blocks.born[number] <= to &&
        (freed === null || freed > from) &&
        (!category || blocks.category[number] === kind)
      )
        inside.push(number);
    }
    const bytes = (numbers) => numbers.reduce((total, number) => total + blocks.size[number], 0);
    const shown = [...inside]
      .sort((a, b) => blocks.size[b] - blocks.size[a])
      .slice(0, Number(limit))
      .sort((a, b) => a - b);
    const bars = new Map();
    for (const number of inside) {
      let bound = 1;
      const lived = blocks.lived[number];
      while (bound < lived) bound *= 4;
      const bar = bars.get(lived < 0 ? Infinity : bound) ?? [0, 0];
      bars.set(lived < 0 ? Infinity : bound, [bar[0] + 1, bar[1] + blocks.size[number]]);
    }
    return {
      from,
      to,
      count: inside.length,
      size_bytes: bytes(inside),
      shown_bytes: bytes(shown),
      left_out: told.left_out,
      blocks: shown.map((number) => [
        blocks.row[number],
        blocks.born[number],
        this.freed(number),
        blocks.size[number],
        blocks.category[number],
        blocks.module[number],
        blocks.name[number],
      ]),
      modules: told.modules.map(([name]) => name),
      names: told.names,
      histogram: [...bars]
        .sort(([a], [b]) => a - b)
        .map(([bound, [count, size]]) => [bound === Infinity ? null : bound, count, size]),
    };
  }
}

/** Columns are written as changes from entry to entry, which compress well. */
function running(changes) {
  let level = 0;
  return changes.map((change) => (level += change));
}

/** How many times are not after one; times ascend. */
function after(times, time) {
  let low = 0;
  let high = times.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[middle] <= time) low = middle + 1;
    else high = middle;
  }
  return low;
}

function lastBefore(rows, time, column) {
  let found;
  for (const row of rows) {
    if (row[column] > time) break;
    found = row;
  }
  return found;
}

function clip([from, to], [first, last]) {
  return [Math.min(Math.max(from, first), last), Math.min(Math.max(to, first), last)];
}
