/** What keys and mouse do. */

import { el } from "./dom.js";

const LINES = [
  ["Drag", "zoom into what was dragged over"],
  ["Wheel", "zoom about the cursor"],
  ["Shift + drag, or middle button", "move along the time axis"],
  ["Double click, or 0", "show the whole run"],
  ["Click", "list what was alive at that instant"],
  ["P", "back to the peak"],
  ["Esc", "forget the picked instant"],
  ["+  and  −", "zoom in and out"],
  ["←  and  →", "move along the time axis"],
  ["1 … 6", "the views"],
  ["/", "search"],
  ["?", "this list"],
];

export function showHelp() {
  if (document.querySelector("dialog.help-box")) return;
  const close = () => dialog.close();
  const dialog = el(
    "dialog.help-box",
    { "aria-label": "Keyboard and mouse", onclose: () => dialog.remove() },
    el("h2", {}, "Keyboard and mouse"),
    el(
      "dl.keys",
      {},
      LINES.map(([key, text]) => el("div", {}, el("dt", {}, el("kbd", {}, key)), el("dd", {}, text))),
    ),
    el("button.tool", { type: "button", onclick: close }, "Close"),
  );
  dialog.addEventListener("click", (event) => event.target === dialog && close());
  document.body.append(dialog);
  dialog.showModal();
}
