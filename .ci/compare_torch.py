#!/usr/bin/env python3
"""Training step time, slrc against PyTorch eager, on this machine, in one run.

    cargo build --release
    python3 -m venv V && V/bin/pip install torch torchvision timm numpy
    V/bin/python .ci/compare_torch.py [--models resnet18_cifar,vgg11_bn_cifar] [--rounds 3] [--threads 2]

End-to-end backpropagation (K = 1) of the same network, batch and optimizer on both sides, f32. Sides take turns; a round of
slrc is two whole runs of `slrc train`, of 2 and of 2 + N steps, whose difference over N is the step: start-up, reading data
and the checkpoint cancel. Prints medians and their ratio as a Markdown table, with slrc's local and SGR steps beside.
"""

import argparse
import gzip
import pathlib
import statistics
import subprocess
import tempfile
import time

import numpy as np
import torch
import torchvision

ROOT = pathlib.Path(__file__).resolve().parent.parent


def resnet18_cifar():
    net = torchvision.models.resnet18(weights=None, num_classes=10)
    net.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    net.maxpool = torch.nn.Identity()
    return net


def vgg11_bn_cifar():
    features = torchvision.models.vgg11_bn(weights=None).features
    return torch.nn.Sequential(features, torch.nn.Flatten(), torch.nn.Linear(512, 10))


def vit_small():
    import timm

    return timm.create_model("vit_small_patch16_224", pretrained=False)


# name of the export -> network, batch, side of an image, classes, steps of a round
CASES = {
    "resnet18_cifar.torchscript": (resnet18_cifar, 64, 32, 10, 6),
    "vgg11_bn_cifar.torchscript": (vgg11_bn_cifar, 64, 32, 10, 10),
    "resnet50.torchscript": (lambda: torchvision.models.resnet50(weights=None), 8, 224, 1000, 3),
    "vit_small_patch16_224.dynamo": (vit_small, 8, 224, 1000, 3),
}

METHODS = [
    ("bp", "--modules 1 --reconcile off"),
    ("local K=4", "--modules 4 --reconcile off --no-monitor"),
    ("SGR finite-difference K=4", "--modules 4"),
    ("SGR exact K=4", "--modules 4 --reconcile exact"),
]


def torch_step(make, batch, side, classes, steps):
    torch.manual_seed(0)
    net = make().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    x, y = torch.randn(batch, 3, side, side), torch.randint(0, classes, (batch,))

    def step():
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()

    step()

    def measure():
        start = time.perf_counter()
        for _ in range(steps):
            step()
        return (time.perf_counter() - start) / steps

    return measure


def slrc_step(slrc, plan, data, steps, threads, folder):
    def run(n):
        out = folder / "run"
        subprocess.run(["rm", "-rf", out], check=True)
        command = [slrc, "train", plan, "--data", data, "--steps", str(n), "--threads", str(threads), "-o", out]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.perf_counter() - start

    return lambda: (run(2 + steps) - run(2)) / steps


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--slrc", default=ROOT / "target/release/slrc")
    p.add_argument("--models", default="resnet18_cifar,vgg11_bn_cifar")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    print(f"torch {torch.__version__}, {a.threads} threads, medians of {a.rounds} rounds\n")
    print("| model, batch | PyTorch bp, ms | " + " | ".join(f"{name}, ms (ratio)" for name, _ in METHODS) + " |")
    print("|---|---|" + "---|" * len(METHODS))
    for name, (make, batch, side, classes, steps) in CASES.items():
        if not any(name.startswith(m) for m in a.models.split(",")):
            continue
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            model = folder / "model.onnx"
            model.write_bytes(gzip.decompress((ROOT / f"models/exports/{name}.onnx.gz").read_bytes()))
            data = folder / "data.npz"
            random = np.random.default_rng(0)
            x = random.standard_normal((4 * batch, 3, side, side)).astype("float32")
            np.savez(data, x=x, y=random.integers(0, classes, 4 * batch))
            measures = [torch_step(make, batch, side, classes, steps)]
            for i, (_, options) in enumerate(METHODS):
                plan = folder / f"plan{i}"
                command = [a.slrc, "partition", model, "--batch", str(batch), "--init", "random", "--lr", "0.001"]
                subprocess.run([*command, *options.split(), "-o", plan], check=True, stdout=subprocess.DEVNULL)
                measures.append(slrc_step(a.slrc, plan, data, steps, a.threads, folder))
            times = [[] for _ in measures]
            for _ in range(a.rounds):
                for t, m in zip(times, measures):
                    t.append(m())
            peer, *ours = [statistics.median(t) for t in times]
            cells = [f"{1e3 * t:.0f} ({t / peer:.2f})" for t in ours]
            print(f"| {name}, {batch} | {1e3 * peer:.0f} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
