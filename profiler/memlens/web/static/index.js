/** The pages of memlens: TensorBoard loads this module into a frame and calls `render()`. */

import { address } from "./address.js";
import { App } from "./app.js";
import { HttpSource } from "./sources/http.js";
import { State } from "./state.js";
import { loadStyles } from "./theme.js";

/** @param source who answers: see `sources/`. */
export function render(source = new HttpSource()) {
  loadStyles();
  document.title = "memlens";
  document.documentElement.lang = "en";
  const app = new App(source, new State(address));
  document.body.append(app.node);
  app.start();
  return app;
}
