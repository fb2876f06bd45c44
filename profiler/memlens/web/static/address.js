/** Where the address is kept: behind the `#` of this page, and of TensorBoard's own when we are a tab of it. */

const KEY = "memlens";

export const address = {
  read() {
    const own = location.hash.slice(1);
    return own || fromParent() || "";
  },
  write(text) {
    history.replaceState(history.state, "", `${location.pathname}${location.search}#${text}`); // not relative to <base>
    toParent(text);
  },
};

/** TensorBoard's address is `#tab&key=value`; other keys than its own are left alone by it. */
function fromParent() {
  const page = parentPage();
  if (!page) return "";
  const held = page.location.hash
    .slice(1)
    .split("&")
    .find((part) => part.startsWith(`${KEY}=`));
  if (!held) return "";
  try {
    return decodeURIComponent(held.slice(KEY.length + 1));
  } catch {
    return "";
  }
}

function toParent(text) {
  const page = parentPage();
  if (!page) return;
  const parts = page.location.hash
    .slice(1)
    .split("&")
    .filter((part) => !part.startsWith(`${KEY}=`));
  if (text) parts.push(`${KEY}=${encodeURIComponent(text)}`);
  page.history.replaceState(
    page.history.state,
    "",
    `${page.location.pathname}${page.location.search}#${parts.join("&")}`,
  );
}

/** The page around this one, if there is one that we may speak to. */
export function parentPage() {
  if (window.parent === window) return null;
  try {
    return window.parent.document ? window.parent : null;
  } catch {
    return null; // of another origin
  }
}
