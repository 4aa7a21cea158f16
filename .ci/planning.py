#!/usr/bin/env python3
"""How long slrc plans: from an opened model to the plan, of synthetic transformers and of known networks.

    cargo build --release
    python3 -m venv V && V/bin/pip install onnx torch torchvision timm
    V/bin/python .ci/planning.py [--blocks 10,30,100,300,1000] [--cache FOLDER] [--write]

Synthetic transformers are made with onnx alone. Known networks are exported with PyTorch where torch, torchvision and timm
are installed, and kept in --cache for the next time; without them those rows are left out. Times are those that
`slrc partition --times` reports: without reading the model and writing the plan, and the least of --runs. A row that takes
longer than --limit seconds says so, and larger transformers are not tried in that column.

Prints a Markdown table, and the growth exponent of each column: the slope of log(time) over log(blocks), by least squares
over transformers of 30 blocks and more. --write puts both into docs/plans.md.
"""

import argparse
import math
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/plans.md"
BEGIN, END = "<!-- table: .ci/planning.py --write -->", "<!-- end of table -->"
WIDTH, HEADS, TOKENS, PATCH, CLASSES = 64, 4, 32, 48, 10
# Fewest blocks that a growth exponent is taken from: below, what does not grow counts.
GROWN = 30

COLUMNS = {
    "BP, K = 1": "--modules 1",
    "K = 4": "--modules 4",
    "K = 4, exact": "--modules 4 --reconcile exact",
}
NETWORKS = {
    "ResNet-50": ("torchvision.models", "resnet50", {}, 64),
    "ViT-S/16": ("timm", "create_model", {"model_name": "vit_small_patch16_224"}, 64),
    "ViT-B/16": ("timm", "create_model", {"model_name": "vit_base_patch16_224"}, 64),
    "Swin-T": ("timm", "create_model", {"model_name": "swin_tiny_patch4_window7_224"}, 64),
}


class Network:
    """Nodes and weights of a model that is being made."""

    def __init__(self):
        self.nodes, self.weights = [], []
        self.random = numpy.random.default_rng(0)

    def weight(self, name, *shape):
        values = self.random.standard_normal(shape, dtype="f4") * 0.02
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def constant(self, name, value):
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def add(self, op, name, *inputs, **attributes):
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def linear(self, name, x, inputs, outputs):
        product = self.add("MatMul", name, x, self.weight(f"{name}.weight", inputs, outputs))
        return self.add("Add", f"{name}.biased", product, self.weight(f"{name}.bias", outputs))

    def norm(self, name, x):
        scale, bias = self.weight(f"{name}.weight", WIDTH), self.weight(f"{name}.bias", WIDTH)
        return self.add("LayerNormalization", name, x, scale, bias, axis=-1)

    def attention(self, name, x):
        def heads(part, order):
            parted = self.add("Reshape", f"{name}.{part}.parted", self.linear(f"{name}.{part}", x, WIDTH, WIDTH), "parted")
            return self.add("Transpose", f"{name}.{part}.heads", parted, perm=order)

        query, key, value = heads("query", [0, 2, 1, 3]), heads("key", [0, 2, 3, 1]), heads("value", [0, 2, 1, 3])
        scores = self.add("Mul", f"{name}.scaled", self.add("MatMul", f"{name}.scores", query, key), "scale")
        mixed = self.add("MatMul", f"{name}.mixed", self.add("Softmax", f"{name}.softmax", scores, axis=-1), value)
        joined = self.add("Reshape", f"{name}.joined", self.add("Transpose", f"{name}.tokens", mixed, perm=[0, 2, 1, 3]), "joined")
        return self.linear(f"{name}.out", joined, WIDTH, WIDTH)


def transformer(blocks):
    """A classifier of so many pre-norm blocks over tokens."""
    net = Network()
    size = WIDTH // HEADS
    net.constant("parted", numpy.array([0, TOKENS, HEADS, size], dtype="i8"))
    net.constant("joined", numpy.array([0, TOKENS, WIDTH], dtype="i8"))
    net.constant("scale", numpy.array(size**-0.5, dtype="f4"))
    net.constant("tokens", numpy.array([1], dtype="i8"))
    x = net.add("MatMul", "patches", "input", net.weight("patches.weight", PATCH, WIDTH))
    x = net.add("Add", "positions", x, net.weight("positions.weight", 1, TOKENS, WIDTH))
    for i in range(blocks):
        name = f"block{i}"
        x = net.add("Add", f"{name}.attended", x, net.attention(f"{name}.attention", net.norm(f"{name}.norm1", x)))
        wide = net.linear(f"{name}.fc1", net.norm(f"{name}.norm2", x), WIDTH, 4 * WIDTH)
        x = net.add("Add", f"{name}.end", x, net.linear(f"{name}.fc2", net.add("Gelu", f"{name}.gelu", wide), 4 * WIDTH, WIDTH))
    x = net.add("ReduceMean", "pooled", net.norm("norm", x), "tokens", keepdims=0)
    x = net.linear("classifier", x, WIDTH, CLASSES)
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", TOKENS, PATCH])]
    outputs = [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", CLASSES])]
    graph = helper.make_graph(net.nodes, f"transformer{blocks}", inputs, outputs, net.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def export(name, path):
    """Exports a known network; whether that was possible."""
    try:
        import importlib

        import torch

        library, function, options, _ = NETWORKS[name]
        make = getattr(importlib.import_module(library), function)
    except ImportError:
        return False
    torch.manual_seed(0)
    axes = {"input": {0: "batch"}, "logits": {0: "batch"}}
    names = {"input_names": ["input"], "output_names": ["logits"], "dynamic_axes": axes}
    sample = (torch.rand(2, 3, 224, 224),)
    # BatchNorm is not folded into convolutions, as it would be for inference.
    mode = torch.onnx.TrainingMode.PRESERVE
    torch.onnx.export(make(**options).eval(), sample, str(path), dynamo=False, opset_version=17, training=mode, **names)
    return True


def planned(a, model, batch, options):
    """Seconds of planning, the least of some runs; none if that takes too long."""
    best = math.inf
    for _ in range(a.runs):
        with tempfile.TemporaryDirectory() as out:
            command = [str(a.slrc), "partition", str(model), "--batch", str(batch), "--init", "random", "--times"]
            command += [*options.split(), "-o", f"{out}/plan"]
            try:
                ran = subprocess.run(command, capture_output=True, text=True, timeout=a.limit)
            except subprocess.TimeoutExpired:
                return None
        if ran.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{ran.stderr}")
        best = min(best, float(re.search(r"planned in ([\d.]+) s", ran.stderr).group(1)))
    return best


def growth(times):
    """The exponent by which time grows with blocks, if it can be told."""
    points = [(math.log(n), math.log(t)) for n, t in times if n >= GROWN and t]
    if len(points) < 2:
        return None
    x, y = (sum(p[i] for p in points) / len(points) for i in (0, 1))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


def line(cells):
    return "| " + " | ".join(cells) + " |"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--slrc", type=pathlib.Path, default=ROOT / "target/release/slrc")
    p.add_argument("--blocks", default="10,30,100,300,1000")
    p.add_argument("--cache", type=pathlib.Path, help="folder that keeps models (default: a temporary one)")
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--limit", type=float, default=120, help="most seconds of a run, reading and writing included")
    p.add_argument("--write", action="store_true")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        cache = a.cache or pathlib.Path(scratch)
        cache.mkdir(parents=True, exist_ok=True)
        shown = lambda t: f"over {a.limit:.0f} s" if t is None else f"{t:.2f} s"
        rows = [line(["network", *COLUMNS]), line(["---"] + ["---:"] * len(COLUMNS))]
        for name, (*_, batch) in NETWORKS.items():
            model = cache / f"{name.replace('/', '-')}.onnx"
            if model.exists() or export(name, model):
                rows.append(line([name, *(shown(planned(a, model, batch, o)) for o in COLUMNS.values())]))
                print(rows[-1], flush=True)
        times = {c: [] for c in COLUMNS}
        for n in map(int, a.blocks.split(",")):
            model = cache / f"transformer{n}.onnx"
            if not model.exists():
                onnx.save(transformer(n), model)
            cells = []
            for c, options in COLUMNS.items():
                tried = all(t is not None for _, t in times[c])
                time = planned(a, model, 8, options) if tried else None
                times[c].append((n, time))
                cells.append(shown(time) if tried else "not tried")
            rows.append(line([f"transformer of {n} blocks", *cells]))
            print(rows[-1], flush=True)
        exponents = [growth(times[c]) for c in COLUMNS]
        told = ["not known" if e is None else f"{e:.2f}" for e in exponents]
        rows.append(line([f"growth exponent, from {GROWN} blocks", *told]))
    table = "\n".join(rows)
    print(f"\n{table}")
    if a.write:
        text = PAGE.read_text()
        before, rest = text.split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END, 1)[1]}")


if __name__ == "__main__":
    main()
