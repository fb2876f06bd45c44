/** All ranks against each other: a heat map of the peaks of steps, and what each held at its own peak. */

import { busy, latest } from "../asking.js";
import { composition } from "../charts/composition.js";
import { hideTooltip, showTooltip } from "../charts/tooltip.js";
import { el, fill, notice, segmented, table } from "../dom.js";
import { colour } from "../theme.js";
import { rankName } from "../charts/ranks.js";
import { formatBytes, formatCount, formatShare } from "../units.js";

const POLL_MS = 700;
const MOST_ROWS = 200;
const LEFT_PX = 74;
const BOTTOM_PX = 24;
const TOP_PX = 7; // half of the first label
const ROW_PX = [3, 26];
const MOST_PX = 560;

export class RanksView {
  constructor(context) {
    this.context = context;
    this.state = context.state;
    this.order = "rank";
    this.summary = el("span.window-text");
    this.tools = el("div.tools");
    this.canvas = el("canvas.heat", {
      tabindex: "0",
      role: "img",
      "aria-label": "Peak of each step of each rank; the table below says the same",
    });
    this.scale = el("div.heat-scale");
    this.picture = el("div.heat-box", {}, this.canvas, this.scale);
    this.message = el("div");
    this.rows = el("tbody");
    this.foot = el("span.table-count");
    this.card = el(
      "section.card",
      { "aria-label": "Heat map of ranks" },
      el("header.card-head", {}, el("h2", {}, "Peak of each step, rank by rank"), this.summary, this.tools),
      this.message,
      this.picture,
    );
    this.list = el(
      "section.card",
      { "aria-label": "Ranks" },
      el("header.card-head", {}, el("h2", {}, "Each rank at its own peak")),
      el(
        "div.table-scroll",
        {},
        table("", ["Rank", "Device", "Peak", "Of the highest", "Step", "Phase", "Categories"], this.rows),
      ),
      el("footer.card-foot", {}, this.foot),
    );
    this.node = el("div.view.view-ranks", {}, this.card, this.list);
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", hideTooltip);
    this.canvas.addEventListener("click", (event) => this.pick(event));
    this.observer = new ResizeObserver(() => this.answer && this.draw());
    this.observer.observe(this.picture);
    this.load = latest(() => this.ask());
  }

  async ask() {
    let answer;
    try {
      answer = await busy(this.card, this.askAll());
    } catch (error) {
      this.list.hidden = true;
      return void fill(this.message, notice("The ranks cannot be shown", error.message, "error"));
    }
    if (!answer.ready) {
      fill(
        this.message,
        el(
          "div.notice",
          { role: "status" },
          el("strong", {}, `Reading ${formatCount(answer.done)} of ${formatCount(answer.of)} ranks`),
          el("progress", { max: answer.of, value: answer.done }),
        ),
      );
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.load(), POLL_MS);
    } else fill(this.message);
    this.list.hidden = this.picture.hidden = !answer.ranks.length;
    if (!answer.ranks.length && !answer.ready) return undefined;
    this.answer = answer;
    return this.draw();
  }

  /** An answer holds a hundred ranks; ask until there are no more. */
  async askAll() {
    const ask = (offset) => this.context.source.ask("ranks", { run: this.context.run().run, offset });
    const answer = await ask(0);
    const ranks = [...answer.ranks];
    while (answer.ready && ranks.length < answer.done) {
      const more = await ask(ranks.length);
      if (!more.ranks.length) break;
      ranks.push(...more.ranks);
    }
    return { ...answer, unread: ranks.filter(({ error }) => error), ranks: ranks.filter(({ error }) => !error) };
  }

  sorted() {
    const ranks = [...this.answer.ranks];
    if (this.order === "peak") ranks.sort((a, b) => b.peak_bytes - a.peak_bytes);
    return ranks;
  }

  draw() {
    const ranks = this.sorted();
    if (!ranks.length)
      return void fill(
        this.message,
        notice("No rank was read", "They appear when a process of the job has recorded something."),
      );
    const peaks = ranks.map(({ peak_bytes: bytes }) => bytes);
    this.summary.textContent = `${formatCount(ranks.length)} ${ranks.length === 1 ? "rank" : "ranks"}, peaks ${formatBytes(Math.min(...peaks))} to ${formatBytes(Math.max(...peaks))}`;
    fill(
      this.tools,
      ranks.length > 1
        ? segmented(
            "Order",
            [
              ["rank", "By rank"],
              ["peak", "Highest first"],
            ],
            this.order,
            (value) => {
              this.order = value;
              this.draw();
            },
          )
        : null,
    );
    this.drawHeat(ranks);
    this.drawList(ranks);
    this.node.dataset.shown = `${ranks.length}/${this.answer.ready}`;
  }

  drawHeat(ranks) {
    const steps = [...new Set(ranks.flatMap((rank) => rank.steps.map(([step]) => step)))].sort((a, b) => a - b);
    const values = ranks.flatMap((rank) => rank.steps.map(([, bytes]) => bytes));
    if (!steps.length) return void (this.picture.hidden = true);
    this.picture.hidden = false;
    const [least, most] = [Math.min(...values), Math.max(...values)];
    const ratio = devicePixelRatio || 1;
    const width = Math.max(this.picture.clientWidth, 200);
    const row = Math.max(ROW_PX[0], Math.min(ROW_PX[1], (MOST_PX - BOTTOM_PX) / ranks.length));
    const height = TOP_PX + row * ranks.length + BOTTOM_PX;
    Object.assign(this.canvas, { width: width * ratio, height: height * ratio });
    this.canvas.style.height = `${height}px`;
    const column = (width - LEFT_PX - 8) / steps.length;
    const ctx = this.canvas.getContext("2d");
    ctx.scale(ratio, ratio);
    ctx.font = "11px system-ui, sans-serif";
    ctx.textBaseline = "middle";
    this.cells = { ranks, steps, row, column };
    const every = Math.ceil(16 / row);
    const gap = row > 6 ? 1 : 0;
    ranks.forEach((rank, number) => {
      ctx.fillStyle = colour("muted");
      ctx.textAlign = "right";
      if (number % every === 0) ctx.fillText(`rank ${rank.rank}`, LEFT_PX - 8, TOP_PX + (number + 0.5) * row);
      const held = new Map(rank.steps);
      steps.forEach((step, at) => {
        if (!held.has(step)) return;
        const share = most > least ? (held.get(step) - least) / (most - least) : 1;
        ctx.fillStyle = heat(share);
        ctx.fillRect(LEFT_PX + at * column, TOP_PX + number * row, column - (column > 6 ? 1 : 0), row - gap);
        const text = formatBytes(held.get(step));
        if (row >= 18 && ctx.measureText(text).width < column - 8) {
          ctx.fillStyle = share > 0.55 ? "#fff" : "#14202e";
          ctx.textAlign = "center";
          ctx.fillText(text, LEFT_PX + (at + 0.5) * column, TOP_PX + (number + 0.5) * row);
        }
      });
    });
    ctx.fillStyle = colour("muted");
    ctx.textAlign = "center";
    const stride = Math.max(1, Math.ceil(52 / column));
    steps.forEach(
      (step, at) =>
        at % stride === 0 &&
        ctx.fillText(
          column > 56 ? `step ${step}` : String(step),
          LEFT_PX + (at + 0.5) * column,
          height - BOTTOM_PX / 2,
        ),
    );
    fill(
      this.scale,
      el("span", {}, formatBytes(least)),
      el("span.heat-ramp", {
        style: { background: `linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map(heat).join(", ")})` },
      }),
      el("span", {}, formatBytes(most)),
    );
  }

  cellAt(event) {
    if (!this.cells) return null;
    const box = this.canvas.getBoundingClientRect();
    const rank = this.cells.ranks[Math.floor((event.clientY - box.top - TOP_PX) / this.cells.row)];
    const step = this.cells.steps[Math.floor((event.clientX - box.left - LEFT_PX) / this.cells.column)];
    const found = rank?.steps.find(([number]) => number === step);
    return found ? { rank, step, bytes: found[1] } : null;
  }

  point(event) {
    const cell = this.cellAt(event);
    this.canvas.style.cursor = cell ? "pointer" : "default";
    if (!cell) return hideTooltip();
    return showTooltip(event, [
      el("strong", {}, `rank ${cell.rank.rank}, step ${cell.step}`),
      ["peak of the step", formatBytes(cell.bytes)],
      ["peak of the rank", formatBytes(cell.rank.peak_bytes)],
      ["device", cell.rank.device],
    ]);
  }

  /** Go to that step of that rank. */
  async pick(event) {
    const cell = this.cellAt(event);
    if (!cell) return;
    hideTooltip();
    const rank = cell.rank.key;
    const { steps } = await this.context.source
      .ask("steps", { run: this.context.run().run, rank })
      .catch(() => ({ steps: [] }));
    const step = steps.find((each) => each.step === cell.step);
    this.state.set({
      rank,
      view: "timeline",
      layout: "rank",
      at: null,
      offset: 0,
      ...(step ? { from: step.start, to: Math.max(step.end, step.start + 1) } : { from: null, to: null }),
    });
  }

  drawList(ranks) {
    const most = Math.max(...ranks.map(({ peak_bytes: bytes }) => bytes), 1);
    fill(
      this.rows,
      ranks.slice(0, MOST_ROWS).map((rank) =>
        el(
          "tr",
          {
            "data-rank": rank.key,
            onclick: () => this.state.set({ rank: rank.key, view: "timeline", layout: "rank", at: null }),
          },
          el("td", {}, el("button.link", { type: "button" }, `rank ${rankName(rank)}`)),
          el("td", {}, rank.device),
          el("td.number.nowrap", { "data-bytes": String(rank.peak_bytes) }, formatBytes(rank.peak_bytes)),
          el("td.number", {}, formatShare(rank.peak_bytes, most)),
          el("td.number", {}, String(rank.peak_step)),
          el("td", {}, rank.peak_phase),
          el("td.wide", {}, composition(this.context.kinds, rank.categories, most)),
        ),
      ),
    );
    const unread = this.answer.unread
      .slice(0, 5)
      .map((rank) => `rank ${rankName(rank)}: ${rank.error}`)
      .join("; ");
    this.foot.textContent = unread
      ? `Not read: ${unread}`
      : ranks.length > MOST_ROWS
        ? `The first ${MOST_ROWS} of ${formatCount(ranks.length)} ranks; the heat map shows all.`
        : "";
  }

  update(changed) {
    if (changed.has("run")) {
      this.answer = null;
      this.load();
    }
  }

  redraw() {
    if (this.answer) this.draw();
  }

  start() {
    this.load();
  }

  refresh() {
    this.load();
  }

  destroy() {
    clearTimeout(this.timer);
    this.observer.disconnect();
    hideTooltip();
  }
}

const HEAT = [
  [232, 240, 248],
  [172, 204, 228],
  [102, 156, 204],
  [40, 104, 168],
  [12, 48, 96],
];

/** One hue from light to dark, so that more is darker to every eye. */
function heat(share) {
  const place = share * (HEAT.length - 1);
  const low = Math.min(Math.floor(place), HEAT.length - 2);
  return `rgb(${HEAT[low].map((from, at) => Math.round(from + (HEAT[low + 1][at] - from) * (place - low))).join(",")})`;
}
