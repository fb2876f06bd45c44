/** The whole run in a strip, with the window that is looked at; drag it to move. */

import { el } from "../dom.js";
import { colour } from "../theme.js";
import { clamp } from "../window.js";
import { AXIS_PX as LEFT_PX, RIGHT_PX } from "./plot.js"; // so that it lies below the charts

const HEIGHT_PX = 36;

export class Minimap {
  /** @param onWindow told the window to look at. */
  constructor(onWindow) {
    this.canvas = el("canvas", { height: HEIGHT_PX });
    this.shade = el("div.minimap-window");
    this.node = el(
      "div.minimap",
      { "aria-hidden": "true", title: "The whole run; drag to move the window" },
      this.canvas,
      this.shade,
    );
    this.onWindow = onWindow;
    this.span = [0, 1];
    this.curve = { time: [], bytes: [] };
    new ResizeObserver(() => this.draw()).observe(this.node);
    this.node.addEventListener("pointerdown", (event) => {
      this.node.setPointerCapture(event.pointerId);
      this.move(event);
    });
    this.node.addEventListener("pointermove", (event) => event.buttons & 1 && this.move(event));
  }

  width() {
    return Math.max(this.node.clientWidth - LEFT_PX - RIGHT_PX, 1);
  }

  move(event) {
    const share = (event.clientX - this.node.getBoundingClientRect().left - LEFT_PX) / this.width();
    const centre = this.span[0] + share * (this.span[1] - this.span[0]);
    const half = (this.window[1] - this.window[0]) / 2;
    this.onWindow(clamp([centre - half, centre + half], this.span));
  }

  /** @param curve `{time, bytes}` of the whole run. */
  show(curve, span) {
    this.curve = curve;
    this.span = span;
    this.draw();
  }

  look(window) {
    this.window = window;
    const width = this.span[1] - this.span[0] || 1;
    const [from, to] = window.map((time) => (time - this.span[0]) / width);
    this.node.hidden = from <= 0 && to >= 1;
    this.shade.style.left = `${LEFT_PX + from * this.width()}px`;
    this.shade.style.width = `${Math.max((to - from) * this.width(), 3)}px`;
  }

  draw() {
    const ratio = window.devicePixelRatio || 1;
    const { canvas } = this;
    const width = this.node.clientWidth;
    if (!width) return;
    canvas.width = width * ratio;
    canvas.height = HEIGHT_PX * ratio;
    const ctx = canvas.getContext("2d");
    ctx.scale(ratio, ratio);
    const { time, bytes } = this.curve;
    const most = bytes.reduce((highest, value) => Math.max(highest, value), 1);
    const across = (now) => LEFT_PX + ((now - this.span[0]) / (this.span[1] - this.span[0] || 1)) * this.width();
    const up = (value) => HEIGHT_PX - (value / most) * (HEIGHT_PX - 4);
    ctx.beginPath();
    ctx.moveTo(LEFT_PX, HEIGHT_PX);
    time.forEach((now, at) => {
      ctx.lineTo(across(now), up(bytes[Math.max(at - 1, 0)]));
      ctx.lineTo(across(now), up(bytes[at]));
    });
    ctx.lineTo(LEFT_PX + this.width(), bytes.length ? up(bytes[bytes.length - 1]) : HEIGHT_PX);
    ctx.lineTo(LEFT_PX + this.width(), HEIGHT_PX);
    ctx.fillStyle = colour("minimap");
    ctx.fill();
    if (this.window) this.look(this.window);
  }
}
