#!/usr/bin/env python3
"""Opens the pages and pictures of `slrc plan report` and `slrc plan sweep` in a real browser, and looks for what is wrong.

    python3 .ci/check_report.py [--slrc target/release/slrc] [--chromium PATH] [--shots FOLDER]

Needs a Chromium (Debian's package will do) and the PyPI package playwright, which is installed into a virtual environment of
the script's own where it is missing. Of plans of 1, 2, 4 and 16 modules, and of one with names of absurd length, at the
width of a desk and of a telephone: nothing is asked of a network, nothing is logged, the page is no wider than the window,
no text leaves its table cell, its box or its picture, and every picture has a size. Screenshots are for people.
"""

import argparse
import gzip
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PLANS = [
    ("one", "models/mnist_cnn/model.onnx", "--modules 1"),
    ("two", "models/mnist_mlp/model.onnx", "--modules 2"),
    ("four", "models/exports/resnet18_cifar.torchscript.onnx.gz", "--modules 4 --batch 64"),
    ("sixteen", "models/exports/resnet50.torchscript.onnx.gz", "--modules 16 --batch 32"),
    ("absurd", "models/mnist_cnn/model.onnx", "--modules 3"),
]
WIDTHS = [1100, 420]

# Everything that is wrong with the page that is open, in words.
LOOK = """
() => {
  const wrong = [];
  const say = (what, e) => wrong.push(what + ': ' + (e.textContent || e.tagName).trim().slice(0, 60));
  if (document.documentElement.scrollWidth > window.innerWidth) {
    wrong.push('the page is ' + document.documentElement.scrollWidth + ' wide');
  }
  for (const e of document.querySelectorAll('td, th, p, h1, h2')) {
    if (e.scrollWidth > e.clientWidth + 1) say('text leaves its place', e);
  }
  const pictures = document.querySelectorAll('svg');
  if (!pictures.length) wrong.push('no picture');
  for (const svg of pictures) {
    const whole = svg.getBoundingClientRect();
    if (whole.width < 100 || whole.height < 50) wrong.push('a picture of ' + whole.width + ' x ' + whole.height);
    const boxes = [...svg.querySelectorAll('rect[rx]')].map(r => r.getBoundingClientRect());
    for (const t of svg.querySelectorAll('text')) {
      const at = t.getBoundingClientRect();
      if (at.left < whole.left - 1 || at.right > whole.right + 1 || at.top < whole.top - 1 || at.bottom > whole.bottom + 1) {
        say('text leaves its picture', t);
      }
      const y = (at.top + at.bottom) / 2;
      for (const b of boxes.filter(b => b.left <= at.left && at.left <= b.right && b.top <= y && y <= b.bottom)) {
        if (at.right > b.right - 2) say('text leaves its box', t);
      }
    }
  }
  return wrong;
}
"""


def with_playwright():
    """Starts this script again where playwright is, if it is not here."""
    try:
        import playwright.sync_api

        return playwright.sync_api
    except ImportError:
        folder = ROOT / "target/browser"
        if pathlib.Path(sys.prefix).resolve() == folder.resolve():
            raise
        if not (folder / "bin").exists():
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin/pip", "install", "-q", "playwright"], check=True)
        os.execv(folder / "bin/python", [folder / "bin/python", __file__, *sys.argv[1:]])


def pages(slrc, folder):
    """Names and files: a page for every plan, and a page around a sweep's picture."""
    run = lambda *a: subprocess.run([slrc, *map(str, a)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for name, model, options in PLANS:
        path = ROOT / model
        if path.suffix == ".gz":
            path = folder / f"{name}.onnx"
            path.write_bytes(gzip.decompress((ROOT / model).read_bytes()))
        plan = folder / name
        run("partition", path, *options.split(), "--init", "random", "-o", plan)
        if name == "absurd":
            text = (plan / "plan.yaml").read_text()
            long = "/".join(["scope_of_a_scope"] * 20)
            text = re.sub(r"^  (value|first|last): .*$", lambda m: f"  {m[1]}: {long}", text, flags=re.M)
            (plan / "plan.yaml").write_text(text)
            (plan / "model.onnx").unlink()
        run("plan", "report", plan)
        yield name, plan / "plan.html"
    picture = folder / "sweep.svg"
    run("plan", "sweep", ROOT / "models/mnist_cnn/model.onnx", "--svg", picture)
    page = folder / "sweep.html"
    page.write_text(f"<!doctype html><title>sweep</title><body>{picture.read_text()}</body>")
    yield "sweep", page


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--slrc", default=ROOT / "target/release/slrc")
    p.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("chromium-browser"))
    p.add_argument("--shots", help="a folder for screenshots")
    a = p.parse_args()
    browser_of = with_playwright()
    if a.chromium is None:
        sys.exit("no chromium on the path: install one, or name it with --chromium")
    wrong = []
    with tempfile.TemporaryDirectory() as folder, browser_of.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=a.chromium, args=["--no-sandbox"])
        for name, file in pages(a.slrc, pathlib.Path(folder)):
            # A picture by itself has the size it has.
            for width in WIDTHS if name != "sweep" else WIDTHS[:1]:
                page = browser.new_page(viewport={"width": width, "height": 800})
                said = []
                page.on("console", lambda m: said.append(f"console: {m.text}"))
                page.on("pageerror", lambda e: said.append(f"error: {e}"))
                page.on("request", lambda r: said.append(f"asks for {r.url}") if not r.url.startswith("file:") else None)
                page.goto(file.as_uri())
                said += page.evaluate(LOOK)
                if a.shots:
                    pathlib.Path(a.shots).mkdir(parents=True, exist_ok=True)
                    page.screenshot(path=f"{a.shots}/{name}-{width}.png", full_page=True)
                page.close()
                print(f"{name} at {width}: {'fine' if not said else ''}")
                wrong += [f"{name} at {width}: {s}" for s in said]
        browser.close()
    for w in wrong:
        print(w)
    if wrong:
        sys.exit(f"{len(wrong)} found")


if __name__ == "__main__":
    main()
