"""Measure every optimizer of the catalogue, each in a process of its own, into measured.json.

python tools/measure_optimizers.py            # all of them, minutes
python tools/measure_optimizers.py adamw sgd  # these alone; the others' figures stay
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import torch

from memlens.catalogue.installed import libraries_of, version_of
from memlens.catalogue.measured import FILE
from memlens.catalogue.table import CATALOGUE

TIMEOUT_S = 900


def measure(name: str) -> dict[str, object]:
    """The figures of one row, or why there are none."""
    words = [sys.executable, "-m", "memlens.variants.measure", name]
    done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S)
    libraries = {each: version_of(each) for each in libraries_of(CATALOGUE[name].extra)}
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return {"failed": lines[-1].strip() if lines else f"exit code {done.returncode}"}
    return {"libraries": libraries, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    names = sys.argv[1:] or list(CATALOGUE)
    rows = json.loads(FILE.read_text())["rows"] if FILE.exists() else {}
    for number, name in enumerate(names, 1):
        print(f"{number}/{len(names)} {name}", end=" ", flush=True)
        rows[name] = measure(name)
        print(rows[name].get("failed", "ok"), flush=True)
    facts = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": "cpu",
        "command": "memlens optimizers NAME --measure",
    }
    # A row a line: a change of one figure is a change of one line.
    body = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(rows[name])}" for name in CATALOGUE if name in rows
    )
    head = json.dumps(facts, indent=1)[:-2]
    FILE.write_text(f'{head},\n "rows": {{\n{body}\n }}\n}}\n')
    print(f"wrote {Path(FILE).name}")


if __name__ == "__main__":
    main()
