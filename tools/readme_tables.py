"""Write the table of measured and claimed state into README.md, from the catalogue.

python tools/readme_tables.py           # rewrites the table between its two marks
python tools/readme_tables.py --check   # exits with 1 if it would change anything
"""

from __future__ import annotations

import sys
from pathlib import Path

from memlens.catalogue.measured import measured
from memlens.catalogue.row import Row
from memlens.catalogue.table import CATALOGUE

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- optimizers: begin -->", "<!-- optimizers: end -->"
HEAD = """\
| optimizer | matrix: fp32 / bf16 | vector: fp32 / bf16 | `step()` adds | claimed | does the claim hold? |
|---|---|---|---|---|---|"""


def number(value: float) -> str:
    """At most three significant digits, and no more than it takes."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def line(row: Row) -> str:
    """One row; what is not measured has a dash."""
    fp32, bf16 = measured(row.name, "fp32"), measured(row.name, "bf16")
    if fp32 is None or bf16 is None:
        return f"| `{row.name}` | – | – | – | – | not measured: {row.cpu or 'see the notes'} |"
    states = [
        f"{number(fp32.state(shape))} / {number(bf16.state(shape))}"
        for shape in ("matrix", "vector")
    ]
    if fp32.master_weight:
        states[0] += f" (+ {number(fp32.master_weight)} master)"
    weight = 2 if row.precision != "job" else 4
    claim = row.claim
    claimed = "–" if claim is None else number(claim.bytes_per_parameter)
    verdict = "" if claim is None else claim.verdict or "yes"
    copies = f"{fp32.temporary / weight:.2f}"
    return f"| `{row.name}` | {states[0]} | {states[1]} | {copies} | {claimed} | {verdict} |"


def table() -> str:
    """All rows but those that differ in the implementation alone, save AdamW's."""
    rows = [
        row
        for row in CATALOGUE.values()
        if not row.name.endswith(f"-{row.implementation}") or row.name.startswith("adamw-")
    ]
    return "\n".join([HEAD, *map(line, rows)])


def main() -> int:
    text = README.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if "--check" in sys.argv[1:]:
        if text != wanted:
            print("README.md's table of optimizers is not that of the catalogue; run this tool")
        return int(text != wanted)
    README.write_text(wanted)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
