#!/usr/bin/env python3
"""Training step time, slrc against PyTorch eager, on this machine, in one run, algorithm by algorithm.

    cargo build --release
    python3 -m venv V && V/bin/pip install torch torchvision timm safetensors pyyaml
    V/bin/python .ci/compare_torch.py [--models resnet18_cifar,vgg11_bn_cifar] [--rounds 5] [--threads 2] [--write]

The same network, cuts, heads, batch size and optimizer (SGD with momentum) on both sides, f32. PyTorch's side of each
algorithm is .ci/torch_methods.py, on networks whose weights the plan is given by name; of vit_small the exporter merges
and transposes some, which stay the plan's own. Attention is PyTorch's fused one but for double backward, which it lacks.
Batches are standard normal numbers on both sides, not the same ones.

Sides take turns, and who begins changes from round to round. A round of PyTorch is the median of its steps after one
that does not count, a round of slrc that of `slrc bench`. The table has medians of rounds, their ratio, and slrc's time
by that of PyTorch's end-to-end backpropagation. --write puts it into docs/performance.md. --peers FOLDER takes
PyTorch's side from a `peer_torch.py` in that folder instead, which has units, heads and cuts of its own.
"""

import argparse
import copy
import pathlib
import statistics
import sys
import tempfile
import time

import measured
import torch
import torchvision
import torch_methods
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

LR = 0.001


def resnet(net):
    stem = [(n, getattr(net, n)) for n in ("conv1", "bn1", "relu", "maxpool")]
    blocks = [(f"layer{i}.{j}", b) for i in range(1, 5) for j, b in enumerate(getattr(net, f"layer{i}"))]
    return stem + blocks, nn.Sequential(net.avgpool, nn.Flatten(), net.fc), [("fc", net.fc)]


def resnet18_cifar():
    net = torchvision.models.resnet18(weights=None, num_classes=10)
    net.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    net.maxpool = nn.Identity()
    return resnet(net)


def resnet50():
    return resnet(torchvision.models.resnet50(weights=None))


def vgg11_bn_cifar():
    features = torchvision.models.vgg11_bn(weights=None).features
    out = nn.Linear(512, 10)
    units = [(f"features.{i}", layer) for i, layer in enumerate(features)]
    return units, nn.Sequential(nn.Flatten(), out), [("classifier", out)]


class Tokens(nn.Module):
    """Patches, class token and positions of a vision transformer."""

    def __init__(self, net):
        super().__init__()
        self.patch_embed, self.cls_token, self.pos_embed = net.patch_embed, net.cls_token, net.pos_embed

    def forward(self, x):
        x = self.patch_embed(x)
        return torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed


class First(nn.Module):
    """The class token."""

    def forward(self, x):
        return x[:, 0]


def vit_small():
    import timm

    net = timm.create_model("vit_small_patch16_224", pretrained=False)
    units = [("", Tokens(net))] + [(f"blocks.{i}", b) for i, b in enumerate(net.blocks)]
    return units, nn.Sequential(net.norm, First(), net.head), [("norm", net.norm), ("head", net.head)]


# Export -> network in units, its own head with names of that head's parts; batch, side of an image, classes; its name
# in peer_torch.py.
CASES = {
    "resnet18_cifar.torchscript": (resnet18_cifar, 64, 32, 10, "resnet18_c"),
    "vgg11_bn_cifar.torchscript": (vgg11_bn_cifar, 64, 32, 10, "vgg11_c"),
    "resnet50.torchscript": (resnet50, 8, 224, 1000, "resnet50"),
    "vit_small_patch16_224.dynamo": (vit_small, 8, 224, 1000, "vit_s"),
}

# Name, modules, options of `slrc partition`, what it is called in torch_methods.py and in peer_torch.py.
METHODS = [
    ("BP", 1, "--reconcile off", "bp", "bp"),
    ("local, K = 4", 4, "--reconcile off --no-monitor", "local", "local"),
    ("SGR finite-difference, K = 4", 4, "", "finite-difference", "fd"),
    ("SGR exact, K = 4", 4, "--reconcile exact", "exact", "exact"),
]


def timed(step, steps):
    """Measures a round: the median of so many steps after one."""

    def measure():
        seconds = []
        for _ in range(steps + 1):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[1:])

    return measure


def give_weights(plan, named, owner):
    """Replaces the plan's initial values by the network's, by name. How many of how many of its parameters."""
    path = plan / "weights.safetensors"
    tensors, theirs = load_file(path), {}
    for name, module in named:
        theirs.update({f"{name}.{k}" if name else k: v for k, v in module.state_dict().items()})
    same = [n for n, t in tensors.items() if n in theirs and theirs[n].shape == t.shape]
    tensors.update({n: theirs[n].detach().to(tensors[n].dtype).contiguous() for n in same})
    save_file(tensors, path)
    return len(same), sum(not n.startswith("head.") for n in owner)


def torch_side(method, plan, network, x, y, classes):
    """A step of PyTorch, cut as the plan is, and the plan with the network's weights."""
    units, tail, tail_names = copy.deepcopy(network)
    text = yaml.load((plan / "plan.yaml").read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    owner = {p["name"]: p["module"] for p in text["parameters"]}
    same = give_weights(plan, units + tail_names, owner)
    if method == "exact":
        # PyTorch cannot differentiate its fused attention twice.
        for module in nn.ModuleList(unit for _, unit in units).modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
    parts = torch_methods.split(units, tail, text["modules"], owner, x, classes, LR)
    if len(parts) != len(text["modules"]):
        sys.exit(f"{plan}: {len(text['modules'])} modules, {len(parts)} of them found in the network")
    return (lambda: torch_methods.step(method, parts, x, y)), same


def peer_side(peer, name, methods):
    """Steps of peer_torch.py by method."""
    units, head, x, y, _ = peer.build(name)
    weights = peer.unit_bytes(units, x[:2])
    trainer = lambda k, m: peer.Trainer(copy.deepcopy(units), head, x, k, m, lr=LR, dist="gcos", weights=weights)
    made = [trainer(k, m) for _, k, _, _, m in methods]
    return [lambda t=t: t.step(x, y) for t in made]


def compare(a, export, methods, folder):
    """Lines of the table for one network."""
    make, batch, side, classes, peer_name = CASES[export]
    torch.manual_seed(0)
    network = make()
    x, y = torch.randn(batch, 3, side, side), torch.randint(0, classes, (batch,))
    model = measured.unpacked(export, folder)
    plans, steps = [], []
    for i, (_, modules, options, method, _) in enumerate(methods):
        plan = measured.partition(a.slrc, model, batch, f"--modules {modules} {options}", folder / f"plan{i}")
        step, same = torch_side(method, plan, network, x, y, classes)
        plans.append(plan)
        steps.append(step)
    print(f"{export}: {same[0]} of the network's {same[1]} tensors begin the same on both sides", file=sys.stderr)
    if a.peers:
        steps = peer_side(a.peers, peer_name, methods)
    theirs = [timed(step, a.steps) for step in steps]
    ours = [lambda p=p: measured.bench(a.slrc, p, a.steps, a.threads)["step_seconds"] for p in plans]
    times = [([], []) for _ in methods]
    for round_ in range(a.rounds):
        for t, *sides in zip(times, theirs, ours):
            for i in (0, 1) if round_ % 2 == 0 else (1, 0):
                t[i].append(sides[i]())
    medians = [[statistics.median(s) for s in t] for t in times]
    base = medians[0][0]
    name = f"{export.split('.')[0]}, {batch}"
    rows = [
        f"| {name} | {m[0]} | {1e3 * t:.0f} | {1e3 * o:.0f} | {o / t:.2f} | {o / base:.2f} |"
        for m, (t, o) in zip(methods, medians)
    ]
    return rows, measured.roof(a.slrc, plans[0], a.threads)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--slrc", type=pathlib.Path, default=measured.ROOT / "target/release/slrc")
    p.add_argument("--models", default="resnet18_cifar,vgg11_bn_cifar,resnet50,vit_small")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--steps", type=int, default=5, help="steps of a round")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--peers", metavar="FOLDER", help="take PyTorch's side from peer_torch.py in this folder")
    p.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    a = p.parse_args()
    source = ".ci/torch_methods.py"
    if a.peers:
        sys.path.insert(0, a.peers)
        import peer_torch

        a.peers, source = peer_torch, "peer_torch.py"
    torch.set_num_threads(a.threads)
    exports = [e for e in CASES if any(e.startswith(m) for m in a.models.split(","))]
    header = "| network, batch | step | PyTorch, ms | slrc, ms | slrc by PyTorch | slrc by PyTorch's BP |"
    lines = [header, "|---|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    for export in exports:
        with tempfile.TemporaryDirectory() as folder:
            rows, roof = compare(a, export, METHODS, pathlib.Path(folder))
        lines += rows
        print("\n".join(rows), flush=True)
    stated = (
        f"PyTorch {torch.__version__.split('+')[0]} ({source}), {a.threads} threads, {roof}; "
        f"medians of {a.rounds} rounds of {a.steps} steps."
    )
    print(f"\n{stated}")
    if a.write:
        measured.write("compare_torch.py", f"{stated}\n\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
