/** The one small box beside the pointer. */

import { el, fill } from "../dom.js";

let box = null;

/** Show lines beside the pointer: text, or `[label, text]`, or nodes. */
export function showTooltip(event, lines) {
  box ??= document.body.appendChild(el("div.tooltip", { role: "tooltip" }));
  fill(
    box,
    lines
      .filter(Boolean)
      .map((line) =>
        Array.isArray(line)
          ? el("div.tooltip-pair", {}, el("span", {}, line[0]), el("span", {}, line[1]))
          : el("div", {}, line),
      ),
  );
  box.hidden = false;
  const { innerWidth, innerHeight } = window;
  const { offsetWidth, offsetHeight } = box;
  const left = event.clientX + 16 + offsetWidth > innerWidth ? event.clientX - offsetWidth - 12 : event.clientX + 16;
  const top = Math.min(event.clientY + 14, innerHeight - offsetHeight - 8);
  box.style.left = `${Math.max(left, 4)}px`;
  box.style.top = `${Math.max(top, 4)}px`;
}

export function hideTooltip() {
  if (box) box.hidden = true;
}
