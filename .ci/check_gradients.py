#!/usr/bin/env python3
"""How far the gradients of a training step are from PyTorch's autograd, network by network. A table.

    pip install torch torchvision timm transformers onnx onnxruntime onnxscript numpy safetensors pyyaml
    cargo build --release && .ci/check_gradients.py [--slrc target/release/slrc] [--exports FOLDER] [--write] [NAME ..]

The networks of .ci/networks.py, exported as there, with smaller images and fewer layers where they may be had, and with
BatchNorm put back where exporting folded it. `slrc train --steps 1` leaves the step's gradients in its momentum buffers.
PyTorch computes the same in f64 on the plan's own graph and weights (.ci/torch_step.py), and once more in f32, to tell
what f32 itself costs. Where slrc is further away than `EXPLAINED`, the choices that explain it are looked for
(.ci/torch_kinks.py). With --allow-skips N cuts may be where up to N tensors cross beside the module's output; the rows are
then the network's with so many skips. With --no-kinks nothing is looked for, since that takes up to hundreds of PyTorch's
steps. --write puts the rows into docs/models.md: those that were not asked for stay.
"""

import argparse
import pathlib
import tempfile
import time
import warnings

import networks
import numpy
import torch
import torch_kinks
import torch_step
from check_models import PAGE, ROOT, infer, partition_repaired, runner, write
from safetensors.torch import load_file

BEGIN = "<!-- table: .ci/check_gradients.py --write -->"
# Modules, and the mode of `slrc partition --reconcile`.
STEPS = [
    (1, "off"), (2, "exact"), (2, "finite-difference"), (4, "exact"), (8, "exact"), (8, "finite-difference")
]  # fmt: skip
SHORT = {"exact": "exact", "finite-difference": "fd"}
HEAD = ["network", "exporter", "BP", *(f"{SHORT[mode]}, K = {modules}" for modules, mode in STEPS[1:])]
# Differences that are looked into, and those that are taken for rounding.
EXPLAINED, ROUNDING = 2e-3, 3e-4
# Of networks here none needs more.
MOST_SKIPS = 3


def label(name, skips):
    return f"{name}, {skips} skip{'s' * (skips > 1)}" if skips else name


def check(run, name, path, folder, small, skips, kinks):
    x = networks.sample(name, small)
    y = networks.labels(name, x, infer(str(path), x).shape, numpy.random.default_rng(1))
    numpy.savez(folder / "data.npz", y=y, **x)
    cells, found = [], None
    for i, (modules, mode) in enumerate(STEPS):
        cuts = ["--modules", str(modules), *(["--allow-skips", str(skips)] if skips else [])]
        try:
            partition_repaired(run, path, *cuts, "--reconcile", mode, "-o", f"plan{i}")
        except RuntimeError as e:
            if "cut" not in str(e):
                raise
            cells.append("fewer cuts")
            continue
        run("train", f"plan{i}", "--data", "data.npz", "--steps", "1", "--no-shuffle", "-o", f"run{i}")
        state = load_file(folder / f"run{i}" / "checkpoint" / "optimizer.safetensors")
        ours = {n.removesuffix(".momentum_buffer"): t for n, t in state.items()}
        double = torch_step.gradients(folder / f"plan{i}", mode, x, y)
        single = torch_step.gradients(folder / f"plan{i}", mode, x, y, torch.float32)
        single = {n: g for module in single for n, g in module.items()}
        worst = torch_step.worst(double, ours)
        cell = f"{worst:.0e} ({torch_step.worst(double, single):.0e})"
        if worst > EXPLAINED and kinks:
            found = torch_kinks.explain(folder / f"plan{i}", mode, x, y, ours, ROUNDING, EXPLAINED, found)
            cell += f"; {len(found.moved)} of {found.near} moved: {found.left:.0e}"
        cells.append(cell)
    return cells


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(networks.NETWORKS))
    parser.add_argument("--slrc", default=ROOT / "target" / "release" / "slrc")
    parser.add_argument("--exports", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()) / "slrc-exports")
    parser.add_argument("--exporter", default="torchscript", choices=networks.EXPORTERS)
    parser.add_argument("--allow-skips", type=int, default=0, metavar="N", choices=range(MOST_SKIPS + 1))
    parser.add_argument("--no-kinks", action="store_true")
    parser.add_argument("--write", action="store_true")
    a = parser.parse_args()
    warnings.filterwarnings("ignore")
    a.exports.mkdir(parents=True, exist_ok=True)
    slrc = str(pathlib.Path(a.slrc).resolve())
    for name in a.names or networks.NETWORKS:
        path = (a.exports / f"{name}.{a.exporter}.small.onnx").resolve()
        small = networks.may_be_small(name, a.exporter)
        start = time.time()
        with tempfile.TemporaryDirectory() as folder:
            try:
                if not path.exists():
                    networks.export(name, a.exporter, str(path), small)
                run = runner(slrc, folder)
                cells = check(run, name, path, pathlib.Path(folder), small, a.allow_skips, not a.no_kinks)
            except RuntimeError as e:
                cells = [" ".join(str(e).replace("|", "/").split())[:160]]
        row = f"| {label(name, a.allow_skips)} | {a.exporter} | " + " | ".join(cells) + " |"
        print(row, f"{time.time() - start:.0f} s", flush=True)
        if a.write:
            rows = [label(name, skips) for name in networks.NETWORKS for skips in range(MOST_SKIPS + 1)]
            write(PAGE, BEGIN, HEAD, [row], rows)


if __name__ == "__main__":
    main()
