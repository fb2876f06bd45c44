/** Orders of the list of blocks, the same as the server's. */

/** Numbers of blocks in an order; among equals the larger ones come first, then the older ones. */
export function sorted(rank, numbers, order, descending) {
  const { blocks } = rank;
  const keys = {
    size: (number) => blocks.size[number],
    category: (number) => blocks.category[number],
    name: (number) => rank.name(number),
    module: (number) => rank.module(number),
    step: (number) => blocks.step[number],
    phase: (number) => blocks.phase[number],
    born: (number) => blocks.born[number],
    op: (number) => rank.op(number),
  };
  const key = keys[order] ?? keys.size;
  const known = new Map(numbers.map((number) => [number, key(number)]));
  const sign = descending ? -1 : 1;
  return [...numbers].sort(
    (a, b) =>
      sign * compare(known.get(a), known.get(b)) || blocks.size[b] - blocks.size[a] || blocks.row[a] - blocks.row[b],
  );
}

function compare(a, b) {
  return a < b ? -1 : a > b ? 1 : 0;
}
