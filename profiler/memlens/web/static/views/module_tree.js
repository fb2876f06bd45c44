/** Modules as a tree: what each holds itself, and with all that is inside. */

export const OUTSIDE = "outside of modules";
const OUTSIDE_PATH = "(outside)"; // no module has a name like it

/**
 * @param modules rows of the answer to `modules`.
 * @returns the root; a node has `name`, `path`, `className`, `own` and `total` (bytes), `categories` and `children`.
 */
export function moduleTree(modules) {
  const root = branch("all", "");
  for (const { module, class_name: className, categories } of modules) {
    const node = module === "" ? child(root, OUTSIDE, OUTSIDE_PATH) : module.split(".").reduce(descend, root);
    node.className = module === "" ? "" : className;
    node.ownCategories = categories;
    node.own = sum(categories);
  }
  for (const node of root.children) node.children = node.children.map(shorten);
  root.children = root.children.map(shorten);
  return gather(root);
}

function branch(name, path) {
  return { name, path, className: "", own: 0, total: 0, ownCategories: {}, categories: {}, children: [], parent: null };
}

function descend(node, name) {
  return child(node, name, node.path ? `${node.path}.${name}` : name);
}

function child(node, name, path) {
  let found = node.children.find((each) => each.name === name);
  if (!found) {
    found = branch(name, path);
    node.children.push(found);
  }
  return found;
}

/** A module that holds nothing but one other is shown as one with it: `model.layers`. */
function shorten(node) {
  node.children = node.children.map(shorten);
  if (node.own || node.children.length !== 1) return node;
  const [only] = node.children;
  only.name = `${node.name}.${only.name}`;
  return only;
}

function gather(node) {
  node.categories = { ...node.ownCategories };
  node.total = node.own;
  node.children.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
  for (const each of node.children) {
    each.parent = node;
    gather(each);
    node.total += each.total;
    for (const [key, bytes] of Object.entries(each.categories))
      node.categories[key] = (node.categories[key] ?? 0) + bytes;
  }
  return node;
}

export function sum(categories) {
  return Object.values(categories).reduce((total, bytes) => total + bytes, 0);
}

export function find(node, path) {
  if (node.path === path && node.parent) return node;
  for (const each of node.children) {
    const found = find(each, path);
    if (found) return found;
  }
  return null;
}

/** Every node below, the largest first. */
export function flat(node) {
  return node.children.flatMap((each) => [each, ...flat(each)]).sort((a, b) => b.total - a.total);
}
