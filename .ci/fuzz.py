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
import struct
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
# The same of networks of a few neurons, whose plans are short: many executions.
SMALL = [
    (1, "--modules 1"),
    (2, "--modules 1 --reconcile off --optimizer adamw"),
    (3, "--modules 2"),
    (3, "--modules 2 --reconcile exact --target cuda:sm_80"),
]
# Inputs a run.
BATCH = 4000


def target_folder():
    return os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))


def run(what, **more):
    subprocess.run(what, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, **more)


def field(number, value):
    """A field of a protobuf message: a number, or bytes or text shorter than 128."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    value = value.encode() if isinstance(value, str) else value
    assert len(value) < 128 or number == 7
    length = bytes([len(value)]) if len(value) < 128 else bytes([len(value) & 127 | 128, len(value) >> 7])
    return bytes([number << 3 | 2]) + length + value


def neurons(layers):
    """An ONNX model of matrices of four rows and columns, with ReLUs between."""
    shape = field(1, field(2, "N")) + field(1, field(1, 4))
    port = lambda name: field(1, name) + field(2, field(1, field(1, 1) + field(2, shape)))
    node = lambda op, y, *xs: field(1, b"".join(field(1, x) for x in xs) + field(2, y) + field(3, y) + field(4, op))
    graph, x = b"", "x"
    for i in range(layers):
        y = "y" if i == layers - 1 else f"h{i}"
        graph += node("MatMul", y, x, f"w{i}")
        if y != "y":
            graph += node("Relu", f"r{i}", y)
        x = f"r{i}"
        data = struct.pack("<16f", *(((7 * j + i) % 16 - 7.5) / 8 for j in range(16)))
        graph += field(5, field(1, 4) + field(1, 4) + field(2, 1) + field(8, f"w{i}") + field(9, data))
    graph += field(2, "g") + field(11, port("x")) + field(12, port("y"))
    return field(1, 9) + field(7, graph) + field(8, field(1, "") + field(2, 20))


def plan(folder, name, model, options):
    slrc = os.path.join(target_folder(), "debug", "slrc")
    out = os.path.join(folder, name)
    run([slrc, "partition", model, *options.split(), "--batch", "2", "-o", out])
    return os.path.join(out, "plan.yaml")


def plans(folder):
    return [plan(folder, f"p{i}", f"models/{model}/model.onnx", o) for i, (model, o) in enumerate(PLANS)]


def small_plans(folder):
    out = []
    for i, (layers, options) in enumerate(SMALL):
        model = os.path.join(folder, f"{layers}.onnx")
        with open(model, "wb") as file:
            file.write(neurons(layers))
        out.append(plan(folder, f"s{i}", model, options))
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
        sets.append(("small plans", "plan", small_plans(folder)))
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
