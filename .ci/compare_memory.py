#!/usr/bin/env python3
"""Bytes of a training step, slrc's plan against PyTorch eager, for the same network, batch and optimizer, in one run.

    cargo build --release
    python3 -m venv V && V/bin/pip install torch torchvision timm pyyaml
    V/bin/python .ci/compare_memory.py [--batch 64] [--networks resnet50,vit_small] [--write]

Both sides state the most bytes that are live at once beyond weights, momentum and the batch. PyTorch's are counted, not
sampled: a step runs on the meta device, which computes nothing, while a dispatch mode adds up the storages that ops make
and takes off those that are freed. `checkpoint` is end-to-end backpropagation with torch.utils.checkpoint around every
block. slrc's are its plan's: the arena with the boundaries, which a run allocates to the byte. --write puts the table into
docs/memory.md.
"""

import argparse
import pathlib
import tempfile
import weakref

import torch
import torch.utils.checkpoint
from compare_launches import plan_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/memory.md"
MARKS = "<!-- table: .ci/compare_memory.py --write -->", "<!-- end of table -->"


class Live(TorchDispatchMode):
    """Bytes of the storages made while active."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = set()

    def gone(self, key, size):
        self.known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if not isinstance(leaf, torch.Tensor):
                continue
            storage = leaf.untyped_storage()
            key = storage._cdata
            if key in self.known:
                continue
            size = storage.nbytes()
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.gone, key, size)
        return result


def resnet50():
    import torchvision

    net = torchvision.models.resnet50(weights=None)
    stem = torch.nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
    blocks = [block for layer in (net.layer1, net.layer2, net.layer3, net.layer4) for block in layer]
    return [stem, *blocks, torch.nn.Sequential(net.avgpool, torch.nn.Flatten(), net.fc)], 1000


class Tokens(torch.nn.Module):
    """Patches, class token and positions of a vision transformer."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net.norm_pre(self.net.patch_drop(self.net._pos_embed(self.net.patch_embed(x))))


class Classify(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.norm, self.head = net.norm, net.head

    def forward(self, x):
        return self.head(self.norm(x)[:, 0])


def vit_small():
    import timm

    net = timm.create_model("vit_small_patch16_224", pretrained=False)
    return [Tokens(net), *net.blocks, Classify(net)], 1000


# name -> title, network in parts, export
NETWORKS = {
    "resnet50": ("ResNet-50", resnet50, "resnet50.torchscript"),
    "vit_small": ("ViT-S/16", vit_small, "vit_small_patch16_224.dynamo"),
}

METHODS = [
    ("BP, K = 1", "--modules 1 --recompute none"),
    ("BP, K = 1, recomputing", "--modules 1"),
    ("BP, K = 1, recomputing products, too", "--modules 1 --recompute products"),
    ("local, K = 4", "--modules 4 --reconcile off --no-monitor"),
    ("SGR finite-difference, K = 4", "--modules 4"),
    ("SGR finite-difference, K = 4, products, too", "--modules 4 --recompute products"),
    ("the same, operands made as they are read", "--modules 4 --recompute products --prologues products"),
    ("SGR exact, K = 4", "--modules 4 --reconcile exact"),
    ("SGR exact, K = 4, products, too", "--modules 4 --reconcile exact --recompute products"),
    ("SGR finite-difference, K = 8", "--modules 8"),
]


def theirs(make, batch, checkpointed):
    """Most live bytes of a step of end-to-end backpropagation."""
    parts, classes = make()
    net = torch.nn.ModuleList(parts).to("meta").train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    x = torch.empty(batch, 3, 224, 224, device="meta")
    y = torch.zeros(batch, dtype=torch.long, device="meta")

    def step():
        h = x
        for part in net:
            h = torch.utils.checkpoint.checkpoint(part, h, use_reentrant=False) if checkpointed else part(h)
        torch.nn.functional.cross_entropy(h, y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    with Live() as live:
        step()
    return live.peak


def ours(slrc, export, options, batch, folder):
    """The arena of a plan, which holds the boundaries too."""
    memory = plan_of(slrc, export, options, batch, folder)["memory"]
    return max(memory["arena"], memory["eval_arena"])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--slrc", default=ROOT / "target/release/slrc")
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--networks", default=",".join(NETWORKS))
    p.add_argument("--write", action="store_true", help="put the table into docs/memory.md")
    a = p.parse_args()
    lines = ["| network | step | by | live MB | of PyTorch BP |", "|---|---|---|---|---|"]
    for name in a.networks.split(","):
        title, make, export = NETWORKS[name]
        base = theirs(make, a.batch, False)
        rows = [("BP", "PyTorch", base), ("BP, checkpoint", "PyTorch", theirs(make, a.batch, True))]
        for method, options in METHODS:
            with tempfile.TemporaryDirectory() as folder:
                rows.append((method, "slrc", ours(a.slrc, export, options, a.batch, pathlib.Path(folder))))
        lines += [f"| {title} | {m} | {by} | {n / 1e6:.0f} | {n / base:.2f} |" for m, by, n in rows]
    table = "\n".join(lines)
    print(f"PyTorch {torch.__version__}, batch {a.batch}\n\n{table}")
    if a.write:
        text = PAGE.read_text()
        begin, end = (text.index(mark) for mark in MARKS)
        stated = f"Batch {a.batch}, PyTorch {torch.__version__.split('+')[0]}."
        PAGE.write_text(f"{text[:begin]}{MARKS[0]}\n{stated}\n\n{table}\n{text[end:]}")


if __name__ == "__main__":
    main()
