/** The frame around the views: which run, which rank, which view. */

import { busy } from "./asking.js";
import { el, fill, notice, segmented, selector } from "./dom.js";
import { rankName } from "./charts/ranks.js";
import { showHelp } from "./help.js";
import { followTheme, THEMES } from "./theme.js";
import { formatCount } from "./units.js";
import { CompareView } from "./views/compare.js";
import { LifetimesView } from "./views/lifetimes.js";
import { ModulesView } from "./views/modules.js";
import { RanksView } from "./views/ranks.js";
import { StepsView } from "./views/steps.js";
import { TimelineView } from "./views/timeline.js";

const VIEWS = [
  ["timeline", "Timeline", TimelineView],
  ["modules", "Modules", ModulesView],
  ["lifetimes", "Lifetimes", LifetimesView],
  ["steps", "Steps", StepsView],
  ["ranks", "Ranks", RanksView],
  ["compare", "Compare", CompareView],
];
const POLL_MS = 3000;
const QUIET_POLL_MS = 15000;

export class App {
  constructor(source, state) {
    this.source = source;
    this.state = state;
    this.answer = { runs: [], series: [] };
    this.view = null;
    this.header = el("header.top");
    this.tabs = el("nav.tabs", { role: "tablist", "aria-label": "Views" });
    this.problems = el("div.problems");
    this.main = el("main", { id: "view", role: "tabpanel" });
    this.node = el("div.memlens", {}, this.header, this.tabs, this.problems, this.main);
    state.listen((changed) => this.update(changed));
    followTheme(state, () => this.view?.redraw?.());
    document.addEventListener("keydown", (event) => this.onKey(event));
  }

  // -- what views ask --------------------------------------------------------------------------

  get kinds() {
    return this.answer.series;
  }

  get runs() {
    return this.answer.runs;
  }

  kind(key) {
    return this.kinds.find((kind) => kind.key === key) ?? { key, label: key, colour: "#6A6A6A", letter: "?" };
  }

  run() {
    return this.runs.find(({ run }) => run === this.state.get("run")) ?? this.firstRun();
  }

  firstRun() {
    return this.runs.find(({ error }) => !error) ?? this.runs[0] ?? null;
  }

  rank() {
    return this.rankOf(this.run(), this.state.get("rank"));
  }

  rankOf(run, wanted) {
    return run.ranks.find(({ key }) => key === wanted) ?? run.ranks[0] ?? null;
  }

  // -- what there is ---------------------------------------------------------------------------

  async start() {
    fill(this.main, notice("Loading", "Looking for runs."));
    await this.poll();
  }

  async poll() {
    let answer = null;
    try {
      answer = await busy(this.header, this.source.ask("runs"));
    } catch (error) {
      if (!this.view) fill(this.main, notice("Nothing can be shown", error.message, "error"));
      else this.header.classList.add("offline");
    }
    if (answer) {
      this.header.classList.remove("offline");
      const before = this.run();
      this.answer = answer;
      this.showFrame();
      this.compareWith(before);
    }
    const isLive = answer?.scanning || this.runs.some(({ state }) => state === "running");
    if (this.source.isStill) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.poll(), isLive || !this.runs.length ? POLL_MS : QUIET_POLL_MS);
  }

  /** Build the view anew if it shows something else now, or have it ask again. */
  compareWith(before) {
    const now = this.run();
    if (
      !this.view ||
      before?.run !== now?.run ||
      Boolean(before?.error) !== Boolean(now?.error) ||
      before?.ranks.length !== now?.ranks.length
    )
      return this.showView();
    // While a job runs, how much it has recorded is not told; nor once it was killed.
    if (now.state !== "finished" || extent(before) !== extent(now)) {
      this.source.forget?.();
      this.view.refresh?.();
    }
    return undefined;
  }

  // -- drawing ---------------------------------------------------------------------------------

  showFrame() {
    const run = this.run();
    const rank = run && this.rank();
    const runs = this.runs.map((entry) => [entry.run, title(entry, this.runs)]);
    const ranks = run?.ranks.map((entry) => [entry.key, `${rankName(entry)} — ${entry.device}`]) ?? [];
    const focused = document.activeElement?.getAttribute?.("aria-label");
    if (
      this.header.contains(document.activeElement) &&
      document.activeElement.tagName === "SELECT" &&
      this.shownRuns ===
        JSON.stringify([runs, ranks, this.state.get("run"), this.state.get("rank"), this.state.get("theme")])
    )
      return;
    this.shownRuns = JSON.stringify([
      runs,
      ranks,
      this.state.get("run"),
      this.state.get("rank"),
      this.state.get("theme"),
    ]);
    fill(
      this.header,
      el("h1.brand", {}, el("span.brand-mark", { "aria-hidden": "true" }), "memlens"),
      runs.length ? selector("Run", runs, run.run, (value) => this.state.set({ run: value })) : null,
      ranks.length > 1
        ? selector("Rank", ranks, rank.key, (value) => this.state.set({ rank: value, offset: 0 }))
        : null,
      run && rank
        ? el(
            "ul.facts",
            { "aria-label": "Facts" },
            this.facts(run, rank).map((fact) => el("li", {}, fact)),
          )
        : null,
      el("div.spring"),
      segmented("Theme", THEMES, this.state.get("theme"), (value) => this.state.set({ theme: value })),
      el(
        "button.tool.help",
        { type: "button", title: "Keyboard and mouse (?)", "aria-label": "Help", onclick: showHelp },
        "?",
      ),
    );
    if (focused) this.header.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
    fill(
      this.tabs,
      VIEWS.filter(([name]) => this.offers(name)).map(([name, text], at) =>
        el(
          "button.tab",
          {
            type: "button",
            role: "tab",
            "aria-selected": String(name === this.state.get("view")),
            "aria-controls": "view",
            "data-view": name,
            title: `${text} (${at + 1})`,
            onclick: () => this.state.set({ view: name }),
          },
          text,
        ),
      ),
    );
    const leftOut = run?.ranks_left_out
      ? [`${formatCount(run.ranks_left_out)} more ranks are not listed; the view "Ranks" shows them.`]
      : [];
    const wanted = this.state.get("run");
    const missing =
      run && wanted && run.run !== wanted
        ? [`There is no run ${wanted} here (yet); this is ${title(run, this.runs)}.`]
        : [];
    const problems = [
      ...missing,
      ...(this.answer.problems ?? []),
      ...(run && !run.error ? run.problems : []),
      ...leftOut,
    ];
    fill(
      this.problems,
      problems.length
        ? el(
            "details.problem",
            {},
            el(
              "summary",
              {},
              problems.length === 1 ? problems[0] : `${problems.length} things to know about this capture`,
            ),
            problems.length > 1
              ? el(
                  "ul",
                  {},
                  problems.map((problem) => el("li", {}, problem)),
                )
              : null,
          )
        : null,
      this.answer.note ? el("p.problem.note", {}, this.answer.note) : null,
    );
  }

  facts(run, rank) {
    return [
      run.state === "running"
        ? el("span.live", {}, "running")
        : run.state === "died"
          ? el("span.died", {}, "ended early")
          : null,
      run.world_size > 1 ? `${run.world_size} ranks` : null,
      rank.device,
      run.source === rank.device.split(":")[0] ? null : run.source,
      rank.events === null ? null : `${formatCount(rank.events)} events`,
      rank.sharding?.length ? rank.sharding.join(", ") : null,
    ].filter(Boolean);
  }

  offers(name) {
    return name !== "compare" || !this.source.isStill || this.runs[0].ranks.length > 1;
  }

  showView() {
    this.view?.destroy?.();
    this.view = null;
    const run = this.run();
    if (!run) return void fill(this.main, this.nothing());
    if (run.error) return void fill(this.main, notice(`${run.run || run.name} cannot be read`, run.error, "error"));
    if (!run.ranks.length)
      return void fill(
        this.main,
        notice("This run holds no rank yet", "They appear here as soon as a process of the job records."),
      );
    const [, , View] = VIEWS.find(([name]) => name === this.state.get("view")) ?? VIEWS[0];
    this.view = new View(this);
    fill(this.main, this.view.node);
    this.view.start();
    return undefined;
  }

  nothing() {
    if (this.answer.scanning) return notice("Looking for runs", "The folder is being read.");
    return el(
      "div.notice.empty",
      { role: "status" },
      el("strong", {}, "There is no memlens run in this folder yet"),
      el("p", {}, "Record one into it; it appears here by itself:"),
      el("pre", {}, "memlens run --out LOGDIR/my-run train.py"),
      el("p", {}, "With memlens-runs as TensorBoard's --logdir, memlens run train.py is enough."),
    );
  }

  update(changed) {
    if (["run", "rank", "view", "theme"].some((name) => changed.has(name))) this.showFrame();
    if (changed.has("view") || (changed.has("run") && (!this.view || this.run()?.error))) this.showView();
    else if (changed.has("run")) this.showView();
    else this.view?.update?.(changed);
  }

  // -- keys ------------------------------------------------------------------------------------

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest?.("input, select, textarea, dialog")) return;
    const number = Number(event.key);
    const offered = VIEWS.filter(([name]) => this.offers(name));
    if (event.key === "?") showHelp();
    else if (event.key === "/") document.querySelector("input.search")?.focus();
    else if (number >= 1 && number <= offered.length) this.state.set({ view: offered[number - 1][0] });
    else if (!this.view?.key?.(event.key)) return;
    event.preventDefault();
  }
}

/** Says whether more was recorded. */
function extent(run) {
  return run && JSON.stringify([run.state, run.ranks.map(({ events }) => events)]);
}

function title(entry, runs) {
  const name = entry.run === "." || !entry.run ? entry.name : entry.run;
  const note = entry.error ? " — damaged" : entry.state === "running" ? " — running" : "";
  return `${name}${note}` || runs.indexOf(entry);
}
