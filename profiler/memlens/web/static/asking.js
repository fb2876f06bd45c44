/** Asking without getting ahead of oneself. */

/** Run `action`; when called again meanwhile, run it once more afterwards, however often it was called. */
export function latest(action) {
  let running = false;
  let again = false;
  return async function run() {
    again = true;
    if (running) return;
    running = true;
    try {
      while (again) {
        again = false;
        await action();
      }
    } finally {
      running = false;
    }
  };
}

/** Show on an element that something is on its way. */
export async function busy(node, promise) {
  node.classList.add("busy");
  node.setAttribute("aria-busy", "true");
  try {
    return await promise;
  } finally {
    node.classList.remove("busy");
    node.setAttribute("aria-busy", "false");
  }
}
