/** Light and dark: what was chosen, or what TensorBoard or the system shows. */

import { parentPage } from "./address.js";

export const THEMES = [
  ["auto", "Auto"],
  ["light", "Light"],
  ["dark", "Dark"],
];

/** Put the style sheets onto the page; an exported file brings its own. */
export function loadStyles() {
  if (import.meta.url.startsWith("data:")) return;
  for (const name of ["vendor/uPlot.min.css", "theme.css"]) {
    const link = document.createElement("link");
    link.rel = "stylesheet";
    link.href = new URL(name, import.meta.url).href;
    document.head.append(link);
  }
}

/** Keep the page in the theme that `state` asks for; `onChange` is told when pictures have to be drawn anew. */
export function followTheme(state, onChange) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const around = parentPage()?.document.body ?? null;
  const apply = () => {
    const chosen = state.get("theme");
    const isDark = chosen === "auto" ? (around?.classList.contains("dark-mode") ?? system.matches) : chosen === "dark";
    const theme = isDark ? "dark" : "light";
    if (document.documentElement.dataset.theme === theme) return;
    document.documentElement.dataset.theme = theme;
    onChange();
  };
  system.addEventListener("change", apply);
  if (around) new MutationObserver(apply).observe(around, { attributes: true, attributeFilter: ["class"] });
  state.listen((changed) => changed.has("theme") && apply());
  apply();
}

/** A colour of the theme, for those who draw on a canvas. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}
