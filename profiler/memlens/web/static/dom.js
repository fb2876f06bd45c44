/** Building the page. Text is always text: nothing here, or anywhere, parses data as HTML. */

/**
 * An element: `el("button.quiet", {title: "Close", onclick: close}, "×")`.
 * Properties that begin with "on" are listeners; `style` is an object; null and false are left out.
 */
export function el(spec, properties = {}, ...children) {
  const [tag, ...classes] = spec.split(".");
  const node = document.createElement(tag || "div");
  if (classes.length) node.className = classes.join(" ");
  dress(node, properties);
  node.append(...present(children));
  return node;
}

/** The same for SVG. */
export function svg(tag, properties = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  dress(node, properties);
  node.append(...present(children));
  return node;
}

function dress(node, properties) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) node.style.setProperty(key, text);
    else if (name === "value" || name === "checked" || name === "selected") node[name] = value;
    else
      node.setAttribute(
        name,
        value === true ? "" : name === "title" || name === "aria-label" ? plain(String(value)) : String(value),
      );
  }
}

function present(children) {
  return children
    .flat(Infinity)
    .filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (typeof child === "string" ? plain(child) : child));
}

/** Write characters that act instead of being seen as escapes, the same as `memlens.report.text.plain`. */
export function plain(text) {
  return text.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu, (character) => {
    const code = character.codePointAt(0);
    const known = { 9: "\\t", 10: "\\n", 13: "\\r" }[code];
    const [mark, digits] = code < 0x100 ? ["x", 2] : code < 0x10000 ? ["u", 4] : ["U", 8];
    return known ?? `\\${mark}${code.toString(16).padStart(digits, "0")}`;
  });
}

/** A dotted name or a path, which may be broken where its parts end. */
export function breakable(text) {
  return text.split(/(?<=[._/:])/).flatMap((part, at) => (at ? [el("wbr"), part] : [part]));
}

/** Put children in place of those that are there. */
export function fill(node, ...children) {
  node.replaceChildren(...present(children));
  return node;
}

/** A labelled selector. `options` are `[value, text]`. */
export function selector(label, options, value, onChange) {
  const select = el("select", { "aria-label": label, onchange: () => onChange(select.value) });
  select.append(...options.map(([key, text]) => el("option", { value: key, selected: key === value }, text)));
  return el("label.field", {}, el("span.field-label", {}, label), select);
}

/** A choice of few: buttons side by side. `options` are `[value, text]`. */
export function segmented(label, options, value, onChange) {
  return el(
    "div.segmented",
    { role: "group", "aria-label": label },
    options.map(([key, text]) =>
      el(
        "button",
        {
          type: "button",
          "aria-pressed": String(key === value),
          "data-value": key,
          onclick: () => onChange(key),
        },
        text,
      ),
    ),
  );
}

/** A table of a look of its own, or of none: the texts of its head, and its body. */
export function table(look, heads, body) {
  const row = el(
    "tr",
    {},
    heads.map((text) => el("th", { scope: "col" }, text)),
  );
  return el(look ? `table.data.${look}` : "table.data", {}, el("thead", {}, row), body);
}

/** What stands where there is nothing to show: what is the matter, and what to do. */
export function notice(title, text, kind = "empty") {
  return el(
    `div.notice.${kind}`,
    { role: kind === "error" ? "alert" : "status" },
    el("strong", {}, title),
    text ? el("p", {}, text) : null,
  );
}

/** Call later, and once only if called often. */
export function debounce(action, delayMs) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), delayMs);
  };
}
