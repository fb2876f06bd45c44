"""Writes the page: the plugin's own modules and styles, and the data, in one file that needs no network.

A browser resolves no relative import within a `data:` URL. So each module becomes one, and an import map
says which; their imports are rewritten to the names in that map.
"""

from __future__ import annotations

import base64
import html
import json
import re
import time
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from memlens.errors import UsageError
from memlens.exporters.html.columns import rank_columns
from memlens.units import format_bytes
from memlens.web.library import Library
from memlens.web.questions import answer
from memlens.web.scan import Folder
from memlens.web.sizes import Json

if TYPE_CHECKING:
    from memlens.capture import Capture

__all__ = ["export"]

MOST_RANKS = 16
MOST_BLOCKS = 120_000
"""Of all ranks together; they take about 10 bytes each in the file."""
STATIC = Path(__file__).parents[2] / "web" / "static"
_STYLES = ("vendor/uPlot.min.css", "theme.css")
_IMPORT = re.compile(r"""(?m)^((?:import|export)\b[^"';]*?from\s*)"(\.{1,2}/[^"]+)";""")
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' data:; style-src 'unsafe-inline'; img-src data:"
)
"""The page can load nothing from anywhere."""
_START = """
import { render } from "memlens/index.js";
import { FileSource } from "memlens/sources/file.js";
const data = document.getElementById("memlens-data").textContent.trim();
document.getElementById("memlens-wait").remove();
render(await FileSource.from(data));
"""


def export(capture: Capture, path: Path) -> None:
    """Write a run as one page.

    Raises:
        UsageError: nothing was recorded.
    """
    path.write_text(_page(capture.info.name, _data(capture)), "utf-8")


# -- data --------------------------------------------------------------------------------------


def _data(capture: Capture) -> Json:
    for recorded in capture.ranks:
        recorded.release()  # they are read below, as the plugin reads them
    library = Library([Folder(Path(capture.info.path))])
    library.search(wait=True)
    run = library.keys()[0]
    runs = _ask(library, "runs")
    entry = runs["runs"][0]
    every = _all_ranks(library, run)
    readable = [rank for rank in every["ranks"] if "error" not in rank]
    highest = sorted(readable, key=lambda rank: -rank["peak_bytes"])[:MOST_RANKS]
    keys = {rank["key"] for rank in highest}
    entry["ranks"] = [rank for rank in entry["ranks"] if rank["key"] in keys]
    opened = {rank["key"]: library.rank(run, rank["key"]) for rank in entry["ranks"]}
    opened = {key: rank for key, rank in opened.items() if rank.pyramid.count}
    entry["ranks"] = [rank for rank in entry["ranks"] if rank["key"] in opened]
    if not opened:
        raise UsageError("nothing was recorded in this run, so there is nothing to show")
    origin_ns = min(rank.origin_ns for rank in opened.values())
    ranks = []
    for key, rank in opened.items():
        told = rank_columns(rank, key, origin_ns, MOST_BLOCKS // len(opened))
        ranks.append({**told, "steps": _ask(library, "steps", run=run, rank=key)})
    runs["note"] = " ".join(_notes(ranks, len(readable)))
    return {"runs": runs, "all_ranks": every, "ranks": ranks}


def _ask(library: Library, question: str, **parameters: object) -> Json:
    status, text = answer(library, question, {key: str(each) for key, each in parameters.items()})
    found: Json = json.loads(text)
    if status != 200:
        raise UsageError(found["error"])
    return found


def _all_ranks(library: Library, run: str) -> Json:
    while not (found := _ask(library, "ranks", run=run))["ready"]:
        time.sleep(0.05)
    ranks = found["ranks"]
    while len(ranks) < found["done"]:
        more = _ask(library, "ranks", run=run, offset=len(ranks))["ranks"]
        if not more:
            break
        ranks += more
    return found


def _notes(ranks: list[Json], all_ranks: int) -> Iterator[str]:
    """What this file does not hold, in sentences."""
    if all_ranks > len(ranks):
        peaks = "peaks" if len(ranks) > 1 else "peak"
        yield (
            f"This file holds the {len(ranks)} of {all_ranks:,} ranks with the highest {peaks}; "
            "the view Ranks shows all."
        )
    if not all(rank["curve"]["exact"] for rank in ranks):
        yield "Curves are sampled; the highest and the last entry of each stretch are kept."
    count = sum(rank["left_out"]["count"] for rank in ranks)
    if count:
        size = format_bytes(max(rank["left_out"]["largest_bytes"] for rank in ranks))
        yield (
            f"Lists leave out {count:,} blocks of up to {size} each that were not alive at the peak; "
            "totals and curves count them. The TensorBoard plugin lists every block."
        )


# -- page --------------------------------------------------------------------------------------


def _page(name: str, data: Json) -> str:
    packed = base64.b64encode(zlib.compress(json.dumps(data, separators=(",", ":")).encode(), 9))
    styles = "\n".join((STATIC / each).read_text("utf-8") for each in _STYLES)
    imports = {f"memlens/{module}": _module_url(module) for module in _modules()}
    # Names from the job are within the packed data, or escaped; nothing of them is markup.
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{html.escape(name)} · memlens</title>
<link rel="icon" href="data:,">
<style>
{styles}
</style>
<script type="importmap">{json.dumps({"imports": imports})}</script>
</head>
<body>
<p id="memlens-wait">Reading … This page needs JavaScript, and a browser of 2023 or later.</p>
<script id="memlens-data" type="text/plain">{packed.decode()}</script>
<script type="module">{_START}</script>
</body>
</html>
"""


def _modules() -> list[str]:
    return sorted(path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*.js"))


def _module_url(module: str) -> str:
    text = (STATIC / module).read_text("utf-8")
    folder = PurePosixPath(module).parent

    def absolute(match: re.Match[str]) -> str:
        return f'{match[1]}"memlens/{_resolve(folder, match[2])}";'

    text = _IMPORT.sub(absolute, text)
    return f"data:text/javascript;base64,{base64.b64encode(text.encode()).decode()}"


def _resolve(folder: PurePosixPath, relative: str) -> str:
    parts: list[Any] = list(folder.parts)
    for part in relative.split("/"):
        if part == "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)
