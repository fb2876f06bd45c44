/** Answers the pages' questions from data in the page itself: what an exported file does without a server. */

import { RankData } from "./rank_data.js";
import { Refusal } from "./http.js";

const MOST_MODULES = 500;

export class FileSource {
  /** @param data what `memlens.exporters.html` wrote. */
  constructor(data) {
    this.data = data;
    this.isStill = true; // nothing in it changes
    this.ranks = new Map(data.ranks.map((rank) => [rank.key, rank]));
    this.opened = new Map();
  }

  /** Undo `deflate` and base64, and read the JSON. */
  static async from(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new FileSource(JSON.parse(await new Response(stream).text()));
  }

  async ask(question, parameters = {}) {
    const { from = null, to = null } = parameters;
    const window = from === null || to === null ? null : [from, to];
    switch (question) {
      case "runs":
        return this.data.runs;
      case "ranks":
        return this.data.all_ranks;
      case "overlay":
        return this.overlay(parameters, window);
      case "difference":
        return this.difference(parameters);
      case "steps":
        return this.rank(parameters.rank).told.steps;
      case "timeline":
        return this.rank(parameters.rank).timeline(window, parameters.points ?? 1000);
      case "alive":
        return this.rank(parameters.rank).alive(parameters);
      case "modules":
        return this.rank(parameters.rank).modules(parameters.time ?? null);
      case "lifetimes":
        return this.rank(parameters.rank).lifetimes(window, parameters);
      default:
        throw new Refusal(`There is no question ${question}.`);
    }
  }

  rank(key) {
    if (!this.ranks.has(key)) throw new Refusal("This rank is not in this file.");
    if (!this.opened.has(key)) this.opened.set(key, new RankData(this.ranks.get(key), this.data.runs.series));
    return this.opened.get(key);
  }

  overlay({ ranks }, window) {
    const keys = ranks ? ranks.split(",") : [...this.ranks.keys()];
    const opened = keys.filter((key) => this.ranks.has(key)).map((key) => this.rank(key));
    const earliest = Math.min(...opened.map(({ told }) => told.begins));
    const shifts = opened.map(({ told }) => told.begins - earliest);
    const span = [0, Math.max(...opened.map(({ told }, at) => told.total + shifts[at]))];
    const [from, to] = window ?? span;
    return {
      span,
      from,
      to,
      ranks: opened.map((rank, at) => {
        const { time, allocated } = rank.sample([from - shifts[at], to - shifts[at]], 500);
        return {
          key: rank.told.key,
          rank: rank.told.rank,
          shift: shifts[at],
          time: time.map((now) => now + shifts[at]),
          allocated,
        };
      }),
    };
  }

  difference({ run, rank, with_run: otherRun, with_rank: otherRank }) {
    const sides = [this.rank(rank), this.rank(otherRank)];
    const held = sides.map((side) => side.modules(null));
    const modules = new Map();
    held.forEach((answer, side) => {
      for (const { module, categories } of answer.modules) {
        if (!modules.has(module)) modules.set(module, { module, a: {}, b: {} });
        modules.get(module)[side ? "b" : "a"] = categories;
      }
    });
    const size = (categories) => Object.values(categories).reduce((total, bytes) => total + bytes, 0);
    const rows = [...modules.values()].sort(
      (x, y) => Math.abs(size(y.b) - size(y.a)) - Math.abs(size(x.b) - size(x.a)),
    );
    const at = sides.map(({ told }) => told.peak_categories);
    const about = (side, which) => ({
      ...which,
      peak_bytes: sides[side].told.peak.allocated_bytes,
      peak: sides[side].told.peak,
    });
    return {
      a: about(0, { run, rank }),
      b: about(1, { run: otherRun, rank: otherRank }),
      categories: this.data.runs.series
        .map(({ key }) => ({ key, a: at[0][key] ?? 0, b: at[1][key] ?? 0 }))
        .filter(({ a, b }) => a || b),
      modules: rows.slice(0, MOST_MODULES),
      left_out: { count: Math.max(rows.length - MOST_MODULES, 0) },
    };
  }
}
