/** Mouse, touch and wheel on a time axis: drag zooms, shift or middle button pans, a click picks. */

import { zoomed } from "../window.js";

const CLICK_PX = 4;

/**
 * @param over the element that has the axis' width.
 * @param axis `window()` and `span()`, both `[from, to]`.
 * @param actions `onWindow([from, to])`, `onPick(time, event)`, `onHover(time | null, event)`; each may be missing.
 */
export function navigate(over, axis, actions) {
  const selection = document.createElement("div");
  selection.className = "selection";
  selection.hidden = true;
  over.append(selection);
  let drag = null;

  const px = (event) => {
    const box = over.getBoundingClientRect();
    return Math.min(Math.max(event.clientX - box.left, 0), box.width);
  };
  const timeAt = (position) => {
    const [from, to] = axis.window();
    return from + ((to - from) * position) / Math.max(over.clientWidth, 1);
  };

  over.addEventListener("pointerdown", (event) => {
    if (event.button > 1) return;
    if (event.button === 1) event.preventDefault();
    const pans = event.shiftKey || event.button === 1;
    drag = { start: px(event), window: axis.window(), pans, moved: false };
    over.setPointerCapture(event.pointerId);
  });
  over.addEventListener("pointermove", (event) => {
    const position = px(event);
    if (!drag) return actions.onHover?.(timeAt(position), event);
    drag.moved ||= Math.abs(position - drag.start) >= CLICK_PX;
    if (!drag.moved) return;
    if (drag.pans) {
      const [from, to] = drag.window;
      const shift = ((drag.start - position) / over.clientWidth) * (to - from);
      const [first, last] = axis.span();
      const held = Math.min(Math.max(shift, first - from), last - to);
      over.classList.add("panning");
      actions.onWindow?.([Math.round(from + held), Math.round(to + held)]);
    } else if (actions.onWindow) {
      selection.hidden = false;
      selection.style.left = `${Math.min(drag.start, position)}px`;
      selection.style.width = `${Math.abs(position - drag.start)}px`;
    }
  });
  over.addEventListener("pointerup", (event) => {
    if (!drag) return;
    const { start, moved, pans } = drag;
    stop();
    const position = px(event);
    if (!moved && !pans) actions.onPick?.(timeAt(position), event);
    else if (moved && !pans) {
      const times = [timeAt(start), timeAt(position)].sort((a, b) => a - b).map(Math.round);
      if (times[1] > times[0]) actions.onWindow?.(times);
    }
  });
  over.addEventListener("pointercancel", stop);
  over.addEventListener("pointerleave", (event) => actions.onHover?.(null, event));
  over.addEventListener("dblclick", () => actions.onWindow?.(axis.span()));
  over.addEventListener("auxclick", (event) => event.preventDefault());
  if (actions.onWindow) {
    over.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        const [from, to] = axis.window();
        if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
          const shift = (event.deltaX / over.clientWidth) * (to - from);
          const [first, last] = axis.span();
          const held = Math.min(Math.max(shift, first - from), last - to);
          return actions.onWindow([Math.round(from + held), Math.round(to + held)]);
        }
        const factor = Math.exp(Math.max(-0.5, Math.min(0.5, event.deltaY / 400)));
        actions.onWindow(zoomed([from, to], factor, timeAt(px(event)), axis.span()));
      },
      { passive: false },
    );
  }

  function stop() {
    drag = null;
    selection.hidden = true;
    over.classList.remove("panning");
  }
}
