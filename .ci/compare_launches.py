#!/usr/bin/env python3
"""Kernel launches and elementwise traffic of a training step: a plan for CUDA against PyTorch eager, counted without a GPU.

    cargo build --release
    python3 -m venv V && V/bin/pip install torch torchvision timm pyyaml
    V/bin/python .ci/compare_launches.py [--slrc target/release/slrc] [--batch 64] [--ops] [--write]

End-to-end backpropagation (K = 1) with SGD and momentum, f32, on both sides. Prints a Markdown table; --write puts it into
docs/cuda.md.

PyTorch. One step (forward, cross-entropy, backward, optimizer; gradients set to None before) runs on meta tensors, which
have shapes but no data, under a TorchDispatchMode, which sees every aten op that eager would run. Each op is one launch,
except that
  * views, allocations and copies between tensors of equal layout (a memcpy) are none;
  * a convolution with a bias is two (cuDNN's and the addition), its backward one for each gradient asked for;
  * layer_norm's backward is two: the input's gradient, and those of weight and bias;
  * an optimizer's foreach op is as many as its lists of tensors are cut into, by the largest limits PyTorch has used
    (depth 1 to 5: 770, 448, 336, 252, 210 tensors, and 2240 chunks of 65536 elements). SGD's default on CUDA is foreach.
"fused attention" replaces scaled_dot_product_attention by the op that CUDA picks for f32 (memory-efficient attention),
where meta tensors would have it written out; "written out" turns it off, as the exported graph has it.
The count is a bound from below: a library call may be several kernels (split sums, changes of layout, zeroed outputs), and
none is known to be less than one. It was not compared with a profile of a GPU.

Elementwise bytes. PyTorch: of every op but products, convolutions, attention, pooling, copies and fills, each tensor read
and each written; normalisation, softmax, reductions, loss and optimizer are in. Given twice: each tensor once an op, which
no device can reach for BatchNorm of images, and with what BatchNorm must read again after its sums. slrc: of every map, row
and reduce kernel of the plan, each operand once a kernel (BatchNorm is two kernels or more), elements of a broadcast once;
partial sums written and read; of an operand that a product makes as it reads it, every tensor but the one that lies as
the operand would, whose read is the product's own. The ratio is to the second figure. Caches are not modelled, and a
product reads an element more than once on either side.
"""

import argparse
import collections
import gzip
import math
import pathlib
import re
import subprocess
import sys
import tempfile

import torch
import torch.nn.functional as F
import yaml
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from measured import ROOT, write

SIDE, CLASSES = 224, 1000

NO_LAUNCH = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh", "detach_"}
COPIES = {"clone", "copy_", "_to_copy"}
# Not elementwise.
OTHER = COPIES | {
    "mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_efficient_attention_backward",
    "max_pool2d_with_indices", "max_pool2d_with_indices_backward", "cat", "stack", "select_backward", "slice_backward",
    "ones_like", "zeros_like", "zeros", "ones", "new_zeros", "zero_", "fill_", "full", "full_like", "scalar_tensor", "arange",
}
# Arguments that do not fit on chip between an op's sums and what it does with them: x; dy and x.
SECOND_PASS = {"native_batch_norm": [0], "native_batch_norm_backward": [0, 1]}
CHUNK, MOST_CHUNKS, MOST_TENSORS = 65536, 2240, {1: 770, 2: 448, 3: 336, 4: 252, 5: 210}


def tensors(tree):
    return [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]


def size(t):
    """Bytes of a tensor, repeated elements once."""
    return t.element_size() * math.prod(n for n, s in zip(t.shape, t.stride()) if s != 0)


def foreach_launches(args):
    lists = [a for a in args if isinstance(a, (list, tuple)) and a and isinstance(a[0], torch.Tensor)]
    launches = held = chunks = 0
    for t in lists[0]:
        held += 1
        for i in range(n := -(-t.numel() // CHUNK)):
            chunks += 1
            last = i == n - 1
            if (held == MOST_TENSORS[len(lists)] and last) or chunks == MOST_CHUNKS:
                launches, chunks, held = launches + 1, 0, 0 if last else 1
    return launches + (chunks > 0)


def launches(name, args, out):
    if name in NO_LAUNCH:
        return 0
    if name in COPIES:
        a, b = (args[0], out) if name != "copy_" else (args[1], args[0])
        return int(a.dtype != b.dtype or a.stride() != b.stride() or a.shape != b.shape)
    if name == "convolution":
        return 1 + (args[2] is not None)
    if name == "convolution_backward":
        return sum(args[-1])
    if name == "native_layer_norm_backward":
        return 1 + any(args[-1][1:])
    return foreach_launches(args) if name.startswith("_foreach_") else 1


def traffic(func, args, kwargs, out):
    """Bytes an op reads and writes, each tensor once."""
    parameters = func._schema.arguments
    written = [a for p, a in zip(parameters, args) if p.alias_info is not None and p.alias_info.is_write]
    read = tensors((args, kwargs))
    return sum(map(size, read)) + sum(map(size, tensors(written if written else out)))


class Counter(TorchDispatchMode):
    """Launches and elementwise bytes by op."""

    def __init__(self):
        super().__init__()
        self.launches, self.bytes, self.again = collections.Counter(), collections.Counter(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.split("::")
        if name[0] == "aten" and not func.is_view and (n := launches(name[1], args, out)):
            self.launches[name[1]] += n
            if name[1] not in OTHER:
                self.bytes[name[1]] += traffic(func, args, kwargs, out)
            if name[1] in SECOND_PASS:
                self.again += sum(size(args[i]) for i in SECOND_PASS[name[1]])
        return out


def efficient_attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    assert attn_mask is None and not enable_gqa, "no model here needs them"
    op = torch.ops.aten._scaled_dot_product_efficient_attention
    return op(q, k, v, None, True, dropout_p, is_causal, scale=scale)[0]


def pytorch(make, batch):
    with torch.device("meta"):
        net = make().train()
        x, y = torch.empty(batch, 3, SIDE, SIDE), torch.empty(batch, dtype=torch.long)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, foreach=True)
    fused, F.scaled_dot_product_attention = F.scaled_dot_product_attention, efficient_attention
    try:
        # The first step makes the momentum buffers; the second is one like any other.
        for _ in range(2):
            with Counter() as counter:
                optimizer.zero_grad()
                F.cross_entropy(net(x), y).backward()
                optimizer.step()
    finally:
        F.scaled_dot_product_attention = fused
    return counter


def resnet50():
    import torchvision

    return torchvision.models.resnet50(weights=None)


def vit(fused):
    import timm

    timm.layers.set_fused_attn(fused)
    net = timm.create_model("vit_small_patch16_224", pretrained=False)
    for block in net.blocks:
        assert block.attn.fused_attn == fused
    return net


def plan_of(slrc, export, options, batch, folder):
    """A plan of an export of the repository, with random weights and SGD with momentum."""
    model, out = folder / "model.onnx", folder / "plan"
    model.write_bytes(gzip.decompress((ROOT / f"models/exports/{export}.onnx.gz").read_bytes()))
    options = f"{options} --init random --optimizer sgd --momentum 0.9 --batch {batch}"
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    done = subprocess.run([slrc, "partition", model, *options.split(), "-o", out], **quiet)
    if done.returncode:
        sys.exit(done.stderr)
    return yaml.load((out / "plan.yaml").read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def extents(text):
    return [] if text == "scalar" else [int(n) for n in str(text).split("x")]


VIEW = re.compile(r"([A-Za-z0-9_./:#~+*<>-]+)(?:@\d+)?\(([-\d,]*)\)")


def ours(plan):
    """Launches of a step, and bytes of its elementwise work, by family: that of map, row and reduce kernels and of the
    work on attention's rows, and what the epilogues of products move besides the product, whose one write is the
    product's own."""
    count, moved = collections.Counter(), collections.Counter()
    for module in plan["modules"]:
        step = module["step"]
        families = {kernel["id"]: kernel["run"]["family"] for kernel in step["kernels"]}
        count.update(families[launch["kernels"][0]] for launch in step["launches"])
        width = {"f32": 4, "i32": 4, "u8": 1, "bit": 1 / 8}
        table = {b["id"]: width[b["dtype"]] for b in plan["buffers"] + step["buffers"]}
        for kernel in step["kernels"]:
            run = kernel["run"]
            for operand in "abxy":
                loads = run.get(f"{operand}_prologue", {}).get("loads", [])
                for view in {line.split(" = ")[1] for line in loads} - {run.get(operand)}:
                    moved[run["family"]] += width_of(view, run, operand, table)
            region, product = run.get("epilogue"), None
            if region is not None:
                conv = {"forward": "y", "input-grad": "x", "weight-grad": "w"}
                product = VIEW.fullmatch(run["c"] if run["family"] == "matmul" else run[conv[run["direction"]]]).group(1)
            elif run["family"] in ("map", "row", "reduce"):
                region = run
            elif run["family"] == "attention":
                region = run["region"]
            else:
                continue
            space = extents(region["space"])
            views = [line.split(" = ")[1] for line in region.get("loads", [])]
            views += [line.split(" = ")[0] for line in region.get("stores", [])]
            for view in views:
                buffer, strides = VIEW.fullmatch(view).groups()
                if buffer == product:
                    continue
                strides = [int(s) for s in strides.split(",") if s]
                assert len(strides) == len(space), view
                moved[run["family"]] += table[buffer] * math.prod(n for n, s in zip(space, strides) if s != 0)
            if split := region.get("split"):
                kept = math.prod(n for i, n in enumerate(space) if i not in region["reduce"])
                reductions = sum(" reduce-" in s for s in region["body"])
                moved[run["family"]] += 2 * 4 * split["count"] * reductions * kept
    return count, moved


def width_of(view, run, operand, table):
    """Bytes that a view of an operand's index space has, each element once."""
    buffer, strides = VIEW.fullmatch(view).groups()
    if run["family"] == "conv":
        g = run["geometry"]
        side, channels = ("input", "in_channels") if operand == "x" else ("output", "out_channels")
        space = [run["batch"], *extents(g[side]), run[channels]]
    else:
        batch = extents(run["batch"])
        space = batch + ([run["m"], run["k"]] if operand == "a" else [run["k"], run["n"]])
    strides = [int(s) for s in strides.split(",")]
    assert len(strides) == len(space), view
    return table[buffer] * math.prod(n for n, s in zip(space, strides) if s != 0)


CASES = [
    ("ResNet-50", "", "resnet50.torchscript", resnet50),
    ("ViT-S/16", "attention written out", "vit_small_patch16_224.dynamo", lambda: vit(False)),
    ("ViT-S/16", "fused attention", "vit_small_patch16_224.dynamo", lambda: vit(True)),
]
# What slrc does with activations, with how the table calls it. PyTorch eager keeps everything.
WAYS = [
    ("--recompute none", "kept, as PyTorch does"),
    ("--recompute none --prologues products", "kept, operands made as they are read"),
    ("--recompute elementwise", "computed again"),
    ("--recompute elementwise --prologues products", "computed again, operands made"),
]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--slrc", default=ROOT / "target/release/slrc")
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--ops", action="store_true", help="list PyTorch's ops, too")
    p.add_argument("--write", action="store_true")
    a = p.parse_args()
    table = [
        f"PyTorch {torch.__version__.split('+')[0]}, batch {a.batch}",
        "",
        "| network | PyTorch eager | activations | launches | slrc | ratio | elementwise MB, once "
        "| with BatchNorm's second read | slrc | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(table))
    plans, lists = {}, []
    for name, variant, export, make in CASES:
        theirs = pytorch(make, a.batch)
        for way, how in WAYS:
            key = (export, way)
            if key not in plans:
                options = f"--modules 1 --target cuda {way}"
                with tempfile.TemporaryDirectory() as folder:
                    plans[key] = ours(plan_of(a.slrc, export, options, a.batch, pathlib.Path(folder)))
            count, moved = plans[key]
            launched, planned = sum(theirs.launches.values()), sum(count.values())
            once, bytes_ours = sum(theirs.bytes.values()), sum(moved.values())
            twice = once + theirs.again
            table.append(
                f"| {name} | {variant} | {how} | {launched} | {planned} | {planned / launched:.2f} | {once / 1e6:.0f} "
                f"| {twice / 1e6:.0f} | {bytes_ours / 1e6:.0f} | {bytes_ours / twice:.2f} |"
            )
            print(table[-1], flush=True)
            lists.append((f"{name} {variant} {how}".strip(), theirs, count, moved))
    if a.write:
        write("compare_launches.py", "\n".join(table), ROOT / "docs/cuda.md")
    for name, theirs, count, moved in lists if a.ops else []:
        print(f"\n{name}\n\n| slrc's family | launches | elementwise MB |\n|---|---|---|")
        for family, n in count.most_common():
            print(f"| {family} | {n} | {moved[family] / 1e6:.1f} |")
        print("\n| PyTorch's op | launches | elementwise MB |\n|---|---|---|")
        for op, n in theirs.launches.most_common():
            print(f"| {op} | {n} | {theirs.bytes[op] / 1e6:.1f} |")


if __name__ == "__main__":
    main()
