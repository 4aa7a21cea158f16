#!/usr/bin/env python3
"""A model's training step on this machine's GPU: slrc's plans and, where torch is installed, PyTorch eager, side by side.

    cargo build --release
    python3 -m venv V && V/bin/pip install torch torchvision timm pyyaml
    V/bin/python .ci/bench_gpu.py models/exports/resnet50.torchscript.onnx.gz --batch 32

Plans of one module (end-to-end backpropagation) and of the numbers in --modules are compiled and measured by `slrc bench`.
PyTorch trains the same network: of a model of models/exports the one it was exported from, of another what --torch says, a
Python expression such as "torchvision.models.resnet18()". It must have as many trained numbers as the plan of one module,
give or take a thousandth.
Both sides: SGD with momentum, a batch from host memory each step, its loss read when the next step is queued; medians of
--steps steps. With --precision f32 PyTorch's TF32 is off, with tf32 it is on for matrix products and convolutions, with bf16
its step runs under autocast, which also keeps activations in bf16, where slrc only rounds operands of products. --libraries
lists what slrc's plans are measured with, one row each: none, cublaslt, cudnn, auto, or two with a + between. Prints a
Markdown table:

  step, samples/s   of the step
  kernels           slrc: launches of a step; PyTorch: kernels of a step, by its profiler
  bandwidth         slrc: planned bytes (each operand once a kernel) by the time of a step. Not known of PyTorch
  memory            slrc: what is allocated; PyTorch: most of its allocator's blocks in use at once. Neither counts the
                    driver's own memory

Without torch, or without its CUDA, only slrc's lines are printed. --device cpu measures both on the CPU, where kernels are
not counted, and PyTorch's memory is not known.
"""

import argparse
import contextlib
import gzip
import json
import pathlib
import statistics
import sys
import tempfile
import time

from measured import ROOT, slrc

# Beginning of an export's name -> the network, as an expression.
NETWORKS = {
    "resnet18_cifar": "cifar(torchvision.models.resnet18(num_classes=10))",
    "resnet18": "torchvision.models.resnet18()",
    "resnet50": "torchvision.models.resnet50()",
    "mobilenet_v2": "torchvision.models.mobilenet_v2()",
    "vgg11_bn_cifar": "vgg_cifar()",
    "vit_small_patch16_224": "timm.create_model('vit_small_patch16_224')",
}
WARM_UP = 3
# Most that numbers of trained numbers may differ by, relatively: exporters drop biases that are zero.
SAME = 1e-3


def plans(a, model, folder):
    """Compiles and measures: one row of `slrc bench` a number of modules and a choice of libraries."""
    rows = []
    for modules in a.modules:
        plan = folder / f"plan-{modules}"
        options = ["--reconcile", "off"] if modules == 1 else []
        target = "cpu" if a.device == "cpu" else "cuda"
        if a.device != "cpu":
            options += ["--precision", a.precision]
        # Libraries lack sums along columns.
        sums = {libraries: "auto" if libraries == "none" else "kernels" for libraries in a.libraries}
        for where in sorted(set(sums.values())):
            slrc(a.slrc, "partition", model, "--modules", modules, "--batch", a.batch, "--init", "random", "--target", target,
                 "--column-sums", where, *options, "-o", plan.with_name(f"{plan.name}-{where}"))
        for libraries in a.libraries:
            plan = folder / f"plan-{modules}-{sums[libraries]}"
            options = ["--libraries", libraries.replace("+", ",")]
            rows += json.loads(slrc(a.slrc, "bench", plan, "--device", a.device, "--steps", a.steps, *options, "--json"))
    return rows


def inputs(plan):
    """Shapes and upper bounds of a plan's inputs, the shape of its labels, and its number of classes."""
    import yaml

    text = yaml.load((plan / "plan.yaml").read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    buffers = {b["id"]: b for b in text["buffers"]}
    shape = lambda b: tuple(map(int, str(b["shape"]).split("x")))
    found = [(shape(buffers[i["buffer"]]), i.get("index_below")) for i in text["inputs"]]
    return found, shape(buffers[text["labels"]["buffer"]]), text["labels"]["classes"]


def network(expression, torch):
    names = {"torch": torch}
    for module in ("torchvision", "timm"):
        try:
            names[module] = __import__(module)
        except ImportError:
            pass

    def cifar(net):
        net.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        net.maxpool = torch.nn.Identity()
        return net

    def vgg_cifar():
        features = names["torchvision"].models.vgg11_bn().features
        return torch.nn.Sequential(features, torch.nn.Flatten(), torch.nn.Linear(512, 10))

    return eval(expression, {**names, "cifar": cifar, "vgg_cifar": vgg_cifar})


def pytorch(a, expression, plan, trained):
    """PyTorch's row, or the reason why there is none."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if a.device != "cpu" and not torch.cuda.is_available():
        return "this torch finds no CUDA device"
    if expression is None:
        return "the network is not known: name it with --torch"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = a.precision == "tf32"
    device = torch.device(a.device)
    gpu = device.type == "cuda"
    torch.manual_seed(0)
    net = network(expression, torch).train().to(device)
    own = sum(p.numel() for p in net.parameters())
    if abs(own - trained) > SAME * trained:
        sys.exit(f"{expression} has {own} trained numbers, the plan of one module {trained}: it is another network")
    found, labels, classes = inputs(plan)
    make = lambda shape, below: torch.randn(shape) if below is None else torch.randint(0, below, shape)
    batch = [make(*i) for i in found] + [torch.randint(0, classes, labels)]
    batch = [t.pin_memory() if gpu else t for t in batch]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

    def step():
        *x, y = [t.to(device, non_blocking=True) for t in batch]
        optimizer.zero_grad()
        low = torch.autocast(device.type, torch.bfloat16) if a.precision == "bf16" else contextlib.nullcontext()
        with low:
            out = net(*x)
            loss = torch.nn.functional.cross_entropy(out.reshape(-1, out.shape[-1]).float(), y.reshape(-1))
        loss.backward()
        optimizer.step()
        if not gpu:
            return loss.detach(), None
        host = torch.empty((), pin_memory=True)
        host.copy_(loss.detach(), non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return host, arrived

    ends, queued = [], []
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    # On a GPU the last step's loss is left unread: one more makes as many ends.
    for _ in range(WARM_UP + a.steps + gpu):
        queued.append(step())
        if gpu and len(queued) < 2:
            continue
        loss, arrived = queued.pop(0)
        if arrived is not None:
            arrived.synchronize()
        loss.item()
        ends.append(time.perf_counter())
    seconds = statistics.median(b - a for a, b in zip(ends[WARM_UP - 1:], ends[WARM_UP:]))
    memory = torch.cuda.max_memory_allocated(device) if gpu else None
    return {"step_seconds": seconds, "kernels": kernels(step, torch) if gpu else None, "memory": memory}


def kernels(step, torch):
    """Kernels of one step, copies and fills left out."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as p:
        step()
        torch.cuda.synchronize()
    # A named range of the host is an event of the device, too.
    ranges = lambda e: getattr(e, "is_user_annotation", False) or e.name.startswith("Optimizer.")
    on_device = [e for e in p.events() if e.device_type == torch.autograd.DeviceType.CUDA and not ranges(e)]
    return sum(not e.name.lower().startswith(("memcpy", "memset")) for e in on_device)


def line(name, batch, seconds, kernels, bandwidth, memory):
    def known(x, form):
        return "" if x is None else form(x)

    cells = [name, f"{1e3 * seconds:.2f} ms", f"{batch / seconds:.1f}", known(kernels, str),
             known(bandwidth, lambda b: f"{b / 1e9:.1f} GB/s"), known(memory, lambda m: f"{m / 2**20:.1f} MiB")]
    print(f"| {' | '.join(cells)} |", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=pathlib.Path, help="an ONNX file, or one compressed by gzip")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--modules", type=lambda s: [int(k) for k in s.split(",")], default=[1, 4], metavar="1,4")
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--device", default="cuda:0")
    p.add_argument("--precision", choices=["f32", "tf32", "bf16"], default="f32")
    p.add_argument("--libraries", type=lambda s: s.split(","), default=["none"], metavar="none,auto")
    p.add_argument("--torch", metavar="EXPRESSION", help="the network, as a Python expression")
    p.add_argument("--slrc", type=pathlib.Path, default=ROOT / "target/release/slrc")
    a = p.parse_args()
    if a.device == "cpu" and (a.precision, a.libraries) != ("f32", ["none"]):
        p.error("--precision and --libraries are for GPUs")
    known = sorted((n for n in NETWORKS if a.model.name.split(".")[0].startswith(n)), key=len)
    expression = a.torch or (NETWORKS[known[-1]] if known else None)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        model = a.model
        if model.suffix == ".gz":
            model = folder / a.model.stem
            model.write_bytes(gzip.decompress(a.model.read_bytes()))
        rows = plans(a, model, folder)
        whole = next(folder.glob("plan-1-*"), folder / "plan-1")
        if not whole.exists():
            slrc(a.slrc, "partition", model, "--modules", 1, "--batch", a.batch, "--init", "random", "-o", whole)
        trained = json.loads(slrc(a.slrc, "plan", "show", whole, "--json"))["totals"]["parameters"]
        print(f"{a.model.name}, batch {a.batch}, {a.precision}, {a.device}, median of {a.steps} steps\n")
        print("| | step | samples/s | kernels | bandwidth | memory |\n|---|---|---|---|---|---|")
        for r in rows:
            name = f"slrc, {r['modules']} modules" if r["modules"] > 1 else "slrc, 1 module (backpropagation)"
            name += f", {r['library']}" if r["library"] else ""
            line(name, r["batch"], r["step_seconds"], r["launches_per_step"], r["bytes_per_second"], r["allocated_bytes"])
        peer = pytorch(a, expression, whole, trained)
        if isinstance(peer, str):
            print(f"\nPyTorch: {peer}")
        else:
            line("PyTorch eager", a.batch, peer["step_seconds"], peer["kernels"], None, peer["memory"])


if __name__ == "__main__":
    main()
