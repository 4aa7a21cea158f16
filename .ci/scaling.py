#!/usr/bin/env python3
"""How slrc's step time grows on this machine: with the batch, the number of modules, the network's depth and threads.

    cargo build --release
    python3 -m venv V && V/bin/pip install onnx
    V/bin/python .ci/scaling.py [--rounds 3] [--steps 5] [--axes batch,modules,depth,threads] [--write]

Batch, modules and threads: ResNet-18 for 32x32 images. Depth: a stack of 3x3 convolutions with BatchNormalization and
ReLU, 64 channels at 16x16, made here. Each time is a median of rounds of `slrc bench`; in a round every value of an
axis is measured once. The exponent is the slope of a straight line through the logarithms: 1 where time grows in
proportion, 0 where it does not grow. --write puts the table into docs/performance.md.
"""

import argparse
import math
import pathlib
import statistics
import tempfile

import measured
import onnx
from onnx import TensorProto, helper

CHANNELS, SIDE, CLASSES = 64, 16, 10


def stack(depth, path):
    """So many layers, then a classifier. Values do not matter: plans draw their own."""
    nodes, weights, now = [], [], "input"

    def weight(name, *shape):
        weights.append(helper.make_tensor(name, TensorProto.FLOAT, shape, [0.5] * math.prod(shape)))
        return name

    for i in range(depth):
        inputs = CHANNELS if i else 3
        nodes.append(helper.make_node(
            "Conv", [now, weight(f"conv{i}.weight", CHANNELS, inputs, 3, 3)], [f"c{i}"], f"conv{i}",
            kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
        norm = [weight(f"bn{i}.{n}", CHANNELS) for n in ("weight", "bias", "running_mean", "running_var")]
        nodes.append(helper.make_node("BatchNormalization", [f"c{i}", *norm], [f"n{i}"], f"bn{i}"))
        nodes.append(helper.make_node("Relu", [f"n{i}"], [f"r{i}"], f"relu{i}"))
        now = f"r{i}"
    nodes.append(helper.make_node("GlobalAveragePool", [now], ["pooled"], "pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"))
    head = [weight("fc.weight", CLASSES, CHANNELS), weight("fc.bias", CLASSES)]
    nodes.append(helper.make_node("Gemm", ["flat", *head], ["logits"], "fc", transB=1))
    value = lambda name, *shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    graph = helper.make_graph(
        nodes, "stack", [value("input", "N", 3, SIDE, SIDE)], [value("logits", "N", CLASSES)], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def exponent(values, seconds):
    """Slope of the least-squares line through the logarithms."""
    x, y = [math.log(v) for v in values], [math.log(s) for s in seconds]
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)


def numbers(text):
    return [int(n) for n in text.split(",")]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--slrc", type=pathlib.Path, default=measured.ROOT / "target/release/slrc")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=5, help="steps of a round")
    p.add_argument("--axes", default="batch,modules,depth,threads", type=lambda s: s.split(","))
    p.add_argument("--batch", type=numbers, default=[8, 16, 32, 64])
    p.add_argument("--modules", type=numbers, default=[1, 2, 4, 8])
    p.add_argument("--depth", type=numbers, default=[4, 8, 16, 32])
    p.add_argument("--threads", type=numbers, default=[1, 2])
    p.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    a = p.parse_args()
    lines = ["| what grows | else | values | ms | exponent |", "|---|---|---|---|---|"]
    most = max(a.threads)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        network = measured.unpacked("resnet18_cifar.torchscript", folder)
        made = {}

        def plan(model, batch, modules):
            key = f"{model.stem}-{batch}-{modules}"
            if key not in made:
                options = f"--modules {modules}" + (" --reconcile off" if modules == 1 else "")
                made[key] = measured.partition(a.slrc, model, batch, options, folder / key)
            return made[key]

        # Name, values, what is held, and the plan and the threads of a value.
        whole = max(a.batch)
        axes = {
            "batch": (a.batch, "ResNet-18, BP", lambda n: (plan(network, n, 1), most)),
            "batch, SGR": (a.batch, "ResNet-18, finite-difference, K = 4", lambda n: (plan(network, n, 4), most)),
            "modules": (
                a.modules,
                f"ResNet-18, batch {whole}, finite-difference; 1 is BP",
                lambda n: (plan(network, whole, n), most),
            ),
            "depth": (
                a.depth,
                "layers, batch 16, BP",
                lambda n: (plan(stack(n, folder / f"stack{n}.onnx"), 16, 1), most),
            ),
            "threads": (a.threads, f"ResNet-18, batch {whole}, BP", lambda n: (plan(network, whole, 1), n)),
        }
        for name, (values, held, of) in axes.items():
            if name.split(",")[0] not in a.axes:
                continue
            plans = [of(v) for v in values]
            times = [[] for _ in values]
            for _ in range(a.rounds):
                for t, (folder_, threads) in zip(times, plans):
                    t.append(measured.bench(a.slrc, folder_, a.steps, threads)["step_seconds"])
            seconds = [statistics.median(t) for t in times]
            slope = f"{exponent(values, seconds):.2f}" if len(values) > 1 else ""
            cells = [name, held, ", ".join(map(str, values)), ", ".join(f"{1e3 * s:.1f}" for s in seconds), slope]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
        roof = measured.roof(a.slrc, next(iter(made.values())), most)
    stated = f"{most} threads where they do not grow, {roof}; medians of {a.rounds} rounds of {a.steps} steps."
    table = "\n".join(lines)
    print(f"\n{stated}\n\n{table}")
    if a.write:
        measured.write("scaling.py", f"{stated}\n\n{table}")


if __name__ == "__main__":
    main()
