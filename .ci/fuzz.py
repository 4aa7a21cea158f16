#!/usr/bin/env python3
"""Searches for models and plans that make slrc panic, hang or take too much memory, for a fixed time, and prints a table.

Run by hand:

    .ci/fuzz.py --minutes 10 [--conformance FOLDER] [--seed N] [--keep FOLDER]

Inputs found are left in the folder of --keep. FOLDER of --conformance is one that .ci/conformance.py has filled.
"""

import argparse
import glob
import os
import resource
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Address space of a search, in bytes: what takes more is found as a death of the process.
MEMORY = 6 << 30
# Plans that together hold every kernel family of the CPU, and launches.
PLANS = [
    ("mnist_mlp", "--modules 2"),
    ("mnist_cnn", "--modules 2 --reconcile exact --optimizer adamw"),
    ("tokens_bert", "--modules 2 --distance squared"),
    ("mnist_deep8", "--modules 2 --reconcile off --head mlp-sr"),
    ("mnist_mlp", "--modules 2 --target cuda:sm_80"),
]
# Inputs a run.
BATCH = 4000


def target_folder():
    return os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))


def run(what, **more):
    subprocess.run(what, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, **more)


def plans(folder):
    slrc = os.path.join(target_folder(), "debug", "slrc")
    out = []
    for i, (model, options) in enumerate(PLANS):
        plan = os.path.join(folder, f"p{i}")
        run([slrc, "partition", f"models/{model}/model.onnx", *options.split(), "--batch", "2", "-o", plan])
        out.append(os.path.join(plan, "plan.yaml"))
    return out


def search(target, files, seed, keep, seconds):
    """Totals of one target, run after run until the time is over."""
    name = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "fuzz", "target")), "debug", "examples", "search")
    totals, end = {"deaths": 0}, time.monotonic() + seconds
    limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    while time.monotonic() < end:
        done = subprocess.run(
            [name, target, str(BATCH), str(seed), keep, *files], capture_output=True, text=True, preexec_fn=limit
        )
        seed += 1
        if done.returncode != 0:
            totals["deaths"] += 1
            os.rename(os.path.join(keep, "running"), os.path.join(keep, f"death-{target}-{seed}"))
            continue
        for line in done.stdout.splitlines():
            key, value = line.split()
            old = totals.get(key, 0)
            totals[key] = max(old, float(value)) if key == "longest" else old + int(value)
    return totals


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--minutes", type=float, default=10)
    args.add_argument("--conformance")
    args.add_argument("--seed", type=int, default=1)
    args.add_argument("--keep")
    args = args.parse_args()
    keep = args.keep or tempfile.mkdtemp(prefix="slrc-fuzz-")
    run(["cargo", "build", "--locked"])
    run(["cargo", "build", "--example", "search", "--manifest-path", "fuzz/Cargo.toml"])
    models = sorted(glob.glob(os.path.join(ROOT, "models", "*", "model.onnx")))
    sets = [("models", "import", models)]
    if args.conformance:
        cases = sorted(glob.glob(os.path.join(args.conformance, "*", "*", "model.onnx")))
        sets.append(("official cases", "import", cases))
    with tempfile.TemporaryDirectory() as folder:
        sets.append(("plans", "plan", plans(folder)))
        found = 0
        print("| from | inputs | executions | panics | deaths | over 2 s | longest | imported or accepted |")
        print("|---|---|---|---|---|---|---|---|")
        for name, target, files in sets:
            t = search(target, files, args.seed << 16, keep, 60 * args.minutes / len(sets))
            good = t.get("cut", 0) + t.get("accepted", 0) + t.get("not-looked-at", 0)
            counts = [t.get(k, 0) for k in ["executions", "panics", "deaths", "slow"]]
            found += sum(counts[1:])
            cells = [name, len(files), *counts, f"{t.get('longest', 0):.2f} s", good]
            print("| " + " | ".join(str(c) for c in cells) + " |", flush=True)
    if found:
        sys.exit(f"{found} inputs are in {keep}")


if __name__ == "__main__":
    main()
