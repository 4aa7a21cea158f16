#!/usr/bin/env python3
"""How long slrc opens, imports and simplifies models, in how much memory, and how that grows.

    cargo build --release
    python3 -m venv V && V/bin/pip install onnx torch torchvision timm
    V/bin/python .ci/importing.py [--nodes 1000,3000,10000,30000,100000] [--cache FOLDER] [--write]

Known networks are those of .ci/planning.py, exported as there. Synthetic ones are of growing length and made with onnx
alone, each for something that could grow faster than the network:

    transformer    planning.py's blocks
    scaled chain   a number of its own at every layer
    long skip      the first layer is used by the last, so that nothing between separates the network
    reshapes       shapes computed from shapes at every layer, as exporters write them
    loop           steps of a Loop, put in place: counted as they stand then
    scan           the same of a Scan, each step with a part of the input
    folded norms   convolutions without BatchNormalization, which is put back (`repair: {rebn: true}`)

Times are those of `slrc check --times`, the least of --runs; memory is the peak of the process, mapped pages of the file
included. Prints Markdown tables, and of every synthetic network the growth exponent: the slope of log(time) over
log(nodes) by least squares, from GROWN nodes. --write puts them into docs/check.md.
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
from onnx import TensorProto, helper

from measured import ROOT, write
from planning import CLASSES, NETWORKS, Network, export, line, transformer

# Fewest nodes that a growth exponent is taken from: below, what does not grow counts.
GROWN = 3000
WIDTH = 8
TIMES = re.compile(r"opened in ([\d.]+) s, imported in ([\d.]+) s, simplified in ([\d.]+) s")


def model(net, x):
    """A classifier of WIDTH numbers a sample that ends in `x`."""
    x = net.linear("classifier", x, WIDTH, CLASSES)
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", WIDTH])]
    outputs = [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", CLASSES])]
    graph = helper.make_graph(net.nodes, "chain", inputs, outputs, net.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def layer(net, i, x):
    return net.add("Relu", f"relu{i}", net.linear(f"fc{i}", x, WIDTH, WIDTH))


def scaled_chain(nodes):
    net, x = Network(), "input"
    for i in range(nodes // 4):
        scale = net.constant(f"scale{i}", numpy.array(1 + i / nodes, dtype="f4"))
        x = net.add("Mul", f"scaled{i}", layer(net, i, x), scale)
    return model(net, x)


def long_skip(nodes):
    net = Network()
    first = x = layer(net, 0, "input")
    for i in range(1, nodes // 3):
        x = layer(net, i, x)
    return model(net, net.add("Add", "skip", first, x))


def reshapes(nodes):
    net, x = Network(), "input"
    for name, value in {"zero": 0, "one": 1}.items():
        net.constant(name, numpy.array(value, dtype="i8"))
    net.constant("axes", numpy.array([0], dtype="i8"))
    net.constant("rest", numpy.array([-1], dtype="i8"))
    for i in range(nodes // 8):
        x = layer(net, i, x)
        batch = net.add("Gather", f"batch{i}", net.add("Shape", f"shape{i}", x), "zero", axis=0)
        batch = net.add("Unsqueeze", f"parts{i}", batch, "axes")
        x = net.add("Reshape", f"reshaped{i}", x, net.add("Concat", f"joined{i}", batch, "rest", axis=0))
    return model(net, x)


# Layers of a loop's body, and its nodes.
DEEP = 7
STEP = 3 * DEEP


def body(net, name, x, extra):
    """Layers that all steps share, from `x`, as a graph with these inputs before it and outputs behind it."""
    own = Network()
    y = x
    for i in range(DEEP):
        weight, bias = (net.weight(f"{name}{i}.{what}", *shape) for what, shape in [("w", [WIDTH, WIDTH]), ("b", [WIDTH])])
        product = own.add("MatMul", f"fc{i}", y, weight)
        y = own.add("Tanh", f"tanh{i}", own.add("Add", f"biased{i}", product, bias))
    value = lambda name, type, shape: helper.make_tensor_value_info(name, type, shape)
    state, flag = (lambda name: value(name, TensorProto.FLOAT, None)), (lambda name: value(name, TensorProto.BOOL, []))
    if extra == "loop":
        own.add("Identity", "on", "go")
        inputs = [value("i", TensorProto.INT64, []), flag("go"), state(x)]
        return helper.make_graph(own.nodes, "body", inputs, [flag("on.out"), state(y)])
    y = own.add("Add", "mixed", y, "part")
    return helper.make_graph(own.nodes, "body", [state(x), state("part")], [state(y)])


def loop(nodes):
    net = Network()
    count = net.constant("count", numpy.array(nodes // STEP, dtype="i8"))
    inside = body(net, "step", "h", "loop")
    return model(net, net.add("Loop", "loop", count, "", layer(net, 0, "input"), body=inside))


def scan(nodes):
    net, steps = Network(), nodes // (STEP + 1)
    inside = body(net, "step", "h", "scan")
    x = net.add("MatMul", "wide", "input", net.weight("wide.weight", WIDTH, steps * WIDTH))
    x = net.add("Reshape", "parts", x, net.constant("parted", numpy.array([-1, steps, WIDTH], dtype="i8")))
    options = {"body": inside, "num_scan_inputs": 1, "scan_input_axes": [1]}
    return model(net, net.add("Scan", "scan", layer(net, 0, "input"), x, **options))


def folded_norms(nodes):
    net, x = Network(), "input"
    for i in range(nodes // 2):
        x = net.add("Conv", f"conv{i}", x, net.weight(f"conv{i}.weight", 2, 2, 1, 1))
        x = net.add("Relu", f"relu{i}", x)
    x = net.add("Flatten", "flat", net.add("GlobalAveragePool", "pooled", x))
    x = net.linear("classifier", x, 2, CLASSES)
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 2, 4, 4])]
    outputs = [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", CLASSES])]
    graph = helper.make_graph(net.nodes, "convolutions", inputs, outputs, net.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


# Nodes of a block of planning.py's transformer.
BLOCK = 29
SYNTHETIC = {
    "transformer": lambda nodes: transformer(nodes // BLOCK),
    "scaled chain": scaled_chain,
    "long skip": long_skip,
    "reshapes": reshapes,
    "loop": loop,
    "scan": scan,
    "folded norms": folded_norms,
}
# Those that are repaired before they are imported, and how.
REPAIRED = {"folded norms": "{rebn: true}"}


# A process of its own that is small: what its parent held counts as a process's peak on Linux.
STARTER = """
import os, resource, sys
code = os.spawnv(os.P_WAIT, sys.argv[1], sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


# What slrc says of a loop of too many steps.
REFUSED = "the steps of its loops make more than"


def ran(command):
    """Standard error and peak memory in bytes of a command that must succeed; nothing where a loop is refused."""
    done = subprocess.run([sys.executable, "-S", "-c", STARTER, *command], capture_output=True, text=True)
    if REFUSED in done.stderr:
        return None
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stderr, int(done.stdout.split()[-1]) * 1024


def measured(a, path, repair=None):
    """Least seconds of opening, importing, simplifying and all three; least peak memory. Nothing where it is refused."""
    times, memory = [], []
    model = [str(path)]
    if repair:
        spec = path.with_suffix(".yaml")
        spec.write_text(f"model: {path.name}\nrepair: {repair}\n")
        model = ["--spec", str(spec)]
    for _ in range(a.runs):
        if (done := ran([str(a.slrc), "check", *model, "--times"])) is None:
            return None
        said, peak = done
        parts = [float(t) for t in TIMES.search(said).groups()]
        times.append([*parts, sum(parts)])
        memory.append(peak)
    return [min(column) for column in zip(*times)], min(memory)


def growth(times):
    """The exponent by which time grows with nodes, if it can be told."""
    points = [(math.log(n), math.log(t)) for n, t in times if n >= GROWN]
    if len(points) < 2:
        return None
    x, y = (sum(p[i] for p in points) / len(points) for i in (0, 1))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


def known(a, cache):
    head = ["network", "nodes", "file", "open", "import", "simplify", "together", "peak / file"]
    rows = [line(head), line(["---"] + ["---:"] * (len(head) - 1))]
    for name in NETWORKS:
        path = cache / f"{name.replace('/', '-')}.onnx"
        if path.exists() or export(name, path):
            times, peak = measured(a, path)
            size = path.stat().st_size
            nodes = len(onnx.load(path, load_external_data=False).graph.node)
            cells = [f"{nodes:,}", f"{size / 1e6:.0f} MB", *(f"{t:.2f} s" for t in times), f"{peak / size:.2f}"]
            rows.append(line([name, *cells]))
            print(rows[-1], flush=True)
    return rows


def synthetic(a, cache):
    lengths = [int(n) for n in a.nodes.split(",")]
    head = ["network", *(f"{n:,} nodes" for n in lengths), "exponent"]
    rows = [line(head), line(["---"] + ["---:"] * (len(head) - 1))]
    for name, make in SYNTHETIC.items():
        times, cells = [], []
        for n in lengths:
            path = cache / f"{name.replace(' ', '-')}-{n}.onnx"
            if not path.exists():
                onnx.save(make(n), path)
            found = measured(a, path, REPAIRED.get(name))
            cells.append(f"{found[0][-1]:.2f} s" if found else "refused")
            times += [(n, found[0][-1])] if found else []
            if not a.cache:
                path.unlink()
        exponent = growth(times)
        told = "not known" if exponent is None else f"{exponent:.2f}"
        rows.append(line([name, *cells, told]))
        print(rows[-1], flush=True)
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--slrc", type=pathlib.Path, default=ROOT / "target/release/slrc")
    p.add_argument("--nodes", default="1000,3000,10000,30000,100000")
    p.add_argument("--cache", type=pathlib.Path, help="folder that keeps models (default: a temporary one)")
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--write", action="store_true")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        cache = a.cache or pathlib.Path(scratch)
        cache.mkdir(parents=True, exist_ok=True)
        table = "\n".join([*known(a, cache), "", *synthetic(a, cache)])
    if a.write:
        write("importing.py", f"\n{table}\n", ROOT / "docs/check.md")


if __name__ == "__main__":
    main()
