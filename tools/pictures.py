"""Makes the README's pictures of the tab Memory: trains, starts TensorBoard, and photographs it.

python tools/pictures.py [--runs FOLDER] [--out examples/pictures]

Needs Chromium and the extra `test`. FOLDER keeps the runs, and those that it already holds are used.
"""

from __future__ import annotations

import argparse
import io
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, ImageColor
from playwright.sync_api import sync_playwright

from memlens.palette import CATEGORY_SERIES

ROOT = Path(__file__).resolve().parents[1]
JOB = ROOT / "examples" / "language_model.py"
RUNS = {"adamw": "adamw", "adamw-8bit": "adamw8bit"}
"""Name of each run, and the optimizer that it trains with."""
WIDTH, HEIGHT, HEIGHT_OF_TABLES = 1180, 800, 1060
SCALE = 1.5
MOST_BYTES = 200_000
BROWSER = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
BESIDE_THE_PEAK = 0.025
"""Where the picture of the timeline points at, as a part of its width."""


def train(folder: Path) -> None:
    """Record the runs that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, optimizer in RUNS.items():
        if (folder / name).exists():
            continue
        with tempfile.TemporaryDirectory() as results:
            command = [sys.executable, "-m", "memlens", "compare", str(JOB), "--steps", "5"]
            command += ["--optimizer", optimizer, "--out", f"{results}/all"]
            subprocess.run(command, check=True)
            run = next(Path(results).rglob("run.json")).parent
            shutil.copytree(run, folder / name)


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """Serve the runs on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--load_fast=false"],
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{address}/data/plugin/memlens/runs") as answer:
                    if b'"scanning":false' in answer.read():
                        break
            except OSError:
                pass
            if time.monotonic() > deadline:
                raise SystemExit("TensorBoard does not answer")
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def save(page: Any, path: Path) -> None:
    """As a PNG of 256 colours, among them all that stand for a category."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    ours = [ImageColor.getrgb(series.colour) for series in CATEGORY_SERIES]
    adaptive = picture.quantize(256 - len(ours), method=Image.Quantize.MEDIANCUT).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*adaptive, *(part for colour in ours for part in colour)])
    picture = picture.quantize(palette=palette, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path}: {size / 1000:.0f} kB")
    if size > MOST_BYTES:
        raise SystemExit(f"{path} is larger than {MOST_BYTES / 1000:.0f} kB")


def show(page: Any, address: str, view: str) -> Any:
    """The tab within TensorBoard, once all is drawn."""
    page.goto("about:blank")
    page.goto(f"{address}/#memlens")
    frame = page.wait_for_selector("iframe").content_frame()
    frame.wait_for_selector(".memlens .tab")
    frame.evaluate("(view) => { location.hash = view; location.reload(); }", view)
    frame = page.wait_for_selector("iframe").content_frame()
    frame.wait_for_selector("[data-shown]")
    frame.wait_for_function("!document.querySelector('main .busy')")
    page.wait_for_timeout(400)
    return frame


def photograph(address: str, out: Path, chromium: str) -> None:
    """All pictures."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=BROWSER)
        for theme, ending in (("light", ""), ("dark", "_dark")):
            page = browser.new_page(device_scale_factor=SCALE, color_scheme=theme)
            page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
            frame = show(page, address, f"run=adamw&theme={theme}")
            box = frame.locator(".u-over").bounding_box()
            about = f"{address}/data/plugin/memlens/timeline?run=adamw&rank=0"
            told = page.request.get(about).json()
            part = told["peak"]["time"] / told["span"][1] + BESIDE_THE_PEAK
            page.mouse.move(box["x"] + part * box["width"], box["y"] + 0.45 * box["height"])
            page.wait_for_timeout(300)
            save(page, out / f"tab_timeline{ending}.png")
            page.mouse.move(0, 0)
            page.set_viewport_size({"width": WIDTH, "height": HEIGHT_OF_TABLES})
            for name, view in (
                ("comparison", "run=adamw&view=compare&with=adamw-8bit"),
                ("modules", "run=adamw&view=modules"),
            ):
                show(page, address, f"{view}&theme={theme}")
                save(page, out / f"tab_{name}{ending}.png")
            page.close()
        browser.close()


def main() -> None:
    """Train, serve, photograph."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "examples" / "pictures")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("Chromium is not installed; on Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.runs or Path(scratch) / "runs"
        train(folder)
        with tensorboard(folder) as address:
            photograph(address, options.out, chromium)


if __name__ == "__main__":
    main()
