#!/usr/bin/env python3
"""Does it learn? Test accuracy of end-to-end backpropagation, local learning and SGR on the shipped MNIST subset.

    cargo build --release && python3 .ci/learning.py [--seeds 3] [--epochs 12] [--jobs 2]

Trains models/mnist_deep8 (eight convolutions) from random weights, one module per layer, with each kind of head, and
prints a Markdown table: test accuracy of the network in percent, mean and range over the seeds. Standard library only.
Results depend on nothing but the plan, so they repeat exactly.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / "models/mnist_deep8/model.onnx"
DATA = ROOT / "models/data/mnist"

SPEC = """
model: {model}
batch: 50
partition: {partition}
head: {{kind: {head}}}
reconcile: {reconcile}
optimizer: {{kind: sgd, lr: {lr}, momentum: 0.9, schedule: cosine}}
init: random
seed: {seed}
"""

# name, partition, head, reconcile
CASES = [("end-to-end BP", "{modules: 1}", "auto", "{mode: 'off'}")]
for head in ["gap-linear", "pool-linear"]:
    CASES += [
        (f"{head}: local", "{per-layer: true}", head, "{mode: 'off'}"),
        (f"{head}: SGR cosine 0.3", "{per-layer: true}", head, "{mode: finite-difference, distance: cosine, lambda: 0.3}"),
        (f"{head}: SGR cosine 0.1", "{per-layer: true}", head, "{mode: finite-difference, distance: cosine, lambda: 0.1}"),
        (f"{head}: SGR cosine 0.3, bp-free", "{per-layer: true}", head, "{mode: bp-free, distance: cosine, lambda: 0.3}"),
        (f"{head}: SGR squared 3", "{per-layer: true}", head, "{mode: finite-difference, distance: squared, lambda: 3}"),
        (f"{head}: SGR relative 0.02", "{per-layer: true}", head, "{mode: finite-difference, distance: relative, lambda: 0.02}"),
    ]


def train(slrc, case, seed, epochs, lr):
    """Percent of the test digits that every head gets right, and the mean cosine(g, e) over boundaries of the last epoch."""
    _, partition, head, reconcile = case
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        spec = folder / "spec.yaml"
        spec.write_text(SPEC.format(model=MODEL, partition=partition, head=head, reconcile=reconcile, seed=seed, lr=lr))
        run = folder / "run"
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        subprocess.run(
            [slrc, "train", spec, "--data", DATA, "--epochs", str(epochs), "--threads", "1", "-o", run], **quiet
        )
        out = subprocess.run(
            [slrc, "eval", run, "--data", DATA, "--json", "--threads", "1"], capture_output=True, check=True
        )
        heads = [100 * h["accuracy"] for h in json.loads(out.stdout)["heads"]]
        lines = [json.loads(l) for l in (run / "metrics.jsonl").read_text().splitlines()]
        last = [l for l in lines if l["epoch"] == lines[-1]["epoch"] and l.get("boundaries")]
        cosines = [b["cosine"] for l in last for b in l["boundaries"]]
        return heads[-1], sum(cosines) / len(cosines) if cosines else None


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--slrc", default=ROOT / "target/release/slrc")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--epochs", type=int, default=12)
    p.add_argument("--lr", type=float, default=0.05)
    p.add_argument("--jobs", type=int, default=2)
    p.add_argument("--only", default="", help="cases whose name contains this")
    a = p.parse_args()
    cases = [c for c in CASES if a.only in c[0]]
    with ThreadPoolExecutor(a.jobs) as pool:
        futures = {
            (c[0], s): pool.submit(train, a.slrc, c, s, a.epochs, a.lr) for c in cases for s in range(1, a.seeds + 1)
        }
        print(f"| method, head | test accuracy, % | range over {a.seeds} seeds | mean cosine(g, e) |")
        print("|---|---|---|---|")
        for name, *_ in cases:
            results = [futures[name, s].result() for s in range(1, a.seeds + 1)]
            scores = [r[0] for r in results]
            cosines = [r[1] for r in results if r[1] is not None]
            cosine = f"{sum(cosines) / len(cosines):.2f}" if cosines else ""
            mean = sum(scores) / len(scores)
            print(f"| {name} | {mean:.2f} | {min(scores):.1f} .. {max(scores):.1f} | {cosine} |", flush=True)


if __name__ == "__main__":
    main()
