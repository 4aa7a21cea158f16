#!/usr/bin/env python3
"""Makes the golden numbers that slrc's training (float32) is compared with, in PyTorch float64.

Everything here is written out from the definitions of x_k, e_k, g_k and the discord; it shares no code with slrc.
README.md beside this file says what each array means. Run with no arguments to rewrite the files;
`check_goldens.py` proves them. Order of reading: the nets, the heads, `train_step`, `METHODS`, the writers.
"""

import contextlib
import copy
import io
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from safetensors.numpy import save as safetensors_bytes
from torch import nn
from torch.nn import functional as F

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # one order of summation, so a remake agrees to the last bits

HERE = Path(__file__).resolve().parent
STEPS = 5


# ---------------------------------------------------------------- the nets


class Stem(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.bn(self.conv(x)))


class Shortcut(nn.Module):
    """Convolution 1x1 with stride, then BatchNorm."""

    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False)
        self.bn = nn.BatchNorm2d(c_out)

    def forward(self, x):
        return self.bn(self.conv(x))


class ResidualBlock(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))."""

    def __init__(self, c_in, c_out, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.relu2 = nn.ReLU()
        self.shortcut = Shortcut(c_in, c_out, stride) if (c_in, stride) != (c_out, 1) else None

    def forward(self, x):
        branch = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(branch + (x if self.shortcut is None else self.shortcut(x)))


class ConvNet(nn.Module):
    """[B, 2, 8, 8] -> 5 classes; modules: stem + block1 | block2 | block3 .. end."""

    def __init__(self):
        super().__init__()
        self.stem = Stem()
        self.block1 = ResidualBlock(8, 8)
        self.block2 = ResidualBlock(8, 12, stride=2)
        self.block3 = ResidualBlock(12, 12)
        self.maxpool = nn.MaxPool2d(2)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(12, 5)

    def segments(self):
        return [
            (lambda x: self.block1(self.stem(x)), ("stem.", "block1.")),
            (self.block2, ("block2.",)),
            (lambda x: self.fc(torch.flatten(self.gap(self.maxpool(self.block3(x))), 1)), ("block3.", "fc.")),
        ]

    def forward(self, x):
        for segment, _ in self.segments():
            x = segment(x)
        return x


class TransformerBlock(nn.Module):
    """Pre-norm: x + attention(norm1(x)), then x + mlp(norm2(x))."""

    TOKENS, WIDTH, HEADS = 7, 16, 2

    def __init__(self):
        super().__init__()
        d = self.WIDTH
        self.norm1 = nn.LayerNorm(d, eps=1e-5)
        self.q, self.k, self.v, self.proj = (nn.Linear(d, d) for _ in range(4))
        self.norm2 = nn.LayerNorm(d, eps=1e-5)
        self.fc1, self.fc2 = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)
        self.gelu = nn.GELU(approximate="none")

    def split_heads(self, x):
        return x.reshape(-1, self.TOKENS, self.HEADS, self.WIDTH // self.HEADS).transpose(1, 2)

    def attention(self, x):
        q, k, v = (self.split_heads(linear(x)) for linear in (self.q, self.k, self.v))
        scores = (q @ k.transpose(2, 3)) * (self.WIDTH // self.HEADS) ** -0.5
        mixed = torch.softmax(scores, -1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(-1, self.TOKENS, self.WIDTH))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(self.gelu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    """[B, 7, 10] -> 4 classes; modules: embed + positions + block1 | block2 .. end."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(10, 16)
        self.pos = nn.Parameter(torch.zeros(1, 7, 16))
        self.block1 = TransformerBlock()
        self.block2 = TransformerBlock()
        self.norm = nn.LayerNorm(16, eps=1e-5)
        self.fc = nn.Linear(16, 4)

    def segments(self):
        return [
            (lambda x: self.block1(self.embed(x) + self.pos), ("embed.", "pos", "block1.")),
            (lambda x: self.fc(self.norm(self.block2(x)).mean(1)), ("block2.", "norm.", "fc.")),
        ]

    def forward(self, x):
        for segment, _ in self.segments():
            x = segment(x)
        return x


class Layer(nn.Sequential):
    """Convolution 3x3, BatchNorm, SiLU: smooth, so that no seed is near a kink."""

    def __init__(self, c_in, c_out, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(c_out)
        self.act = nn.SiLU()


class UNet(nn.Module):
    """[B, 2, 8, 8] -> 5 classes; modules: enter + down | bottom | merge1 | merge2 .. end, with two skips across them."""

    def __init__(self):
        super().__init__()
        self.enter, self.down, self.bottom = Layer(2, 4), Layer(4, 6, stride=2), Layer(6, 8, stride=2)
        self.up1, self.merge1 = nn.ConvTranspose2d(8, 6, 2, stride=2), Layer(12, 6)
        self.up2, self.merge2 = nn.ConvTranspose2d(6, 4, 2, stride=2), Layer(8, 4)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 5)

    def first(self, x):
        wide = self.enter(x)
        return self.down(wide), wide

    def second(self, x, wide):
        return self.bottom(x), wide, x

    def third(self, x, wide, middle):
        return self.merge1(torch.cat([self.up1(x), middle], 1)), wide

    def fourth(self, x, wide):
        x = self.merge2(torch.cat([self.up2(x), wide], 1))
        return self.fc(torch.flatten(self.gap(x), 1))

    def segments(self):
        return [
            (self.first, ("enter.", "down.")),
            (self.second, ("bottom.",)),
            (self.third, ("up1.", "merge1.")),
            (self.fourth, ("up2.", "merge2.", "fc.")),
        ]

    def forward(self, x):
        x = (x,)
        for segment, _ in self.segments():
            x = as_tuple(segment(*x))
        return x[0]


def as_tuple(x):
    return x if isinstance(x, tuple) else (x,)


# ---------------------------------------------------------------- the local heads


class PoolLinearHead(nn.Module):
    """Adaptive average pool to 2x2, flatten C*2*2 in NCHW order, linear."""

    def __init__(self, channels, classes):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.linear = nn.Linear(channels * 4, classes)

    def forward(self, x):
        return self.linear(torch.flatten(self.pool(x), 1))


class TokenHead(nn.Module):
    """LayerNorm over the last axis, mean over tokens, linear."""

    def __init__(self, width, classes):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.linear = nn.Linear(width, classes)

    def forward(self, x):
        return self.linear(self.norm(x).mean(1))


# ---------------------------------------------------------------- initial values


def randomise(module, generator):
    """Every parameter and running statistic gets its own float32 values, so no two initializers are equal."""

    def normal(tensor, scale, offset=0.0):
        draw = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
        tensor.data.copy_(offset + scale * draw)
        tensor.data.copy_(tensor.data.to(torch.float32))  # float32-representable

    for name, parameter in module.named_parameters():
        if parameter.dim() >= 2 and not name.endswith("pos"):
            fan_in = parameter[0].numel()
            gain = 2.0 if parameter.dim() == 4 else 1.0
            normal(parameter, (gain / fan_in) ** 0.5)
        elif name.endswith("pos"):
            normal(parameter, 0.5)
        elif name.endswith("weight"):
            normal(parameter, 0.1, offset=1.0)
        else:
            normal(parameter, 0.1)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            normal(buffer, 0.1)
        elif name.endswith("running_var"):
            normal(buffer, 0.1)
            buffer.data.copy_((1.0 + buffer.abs()).to(torch.float32))


@dataclass
class Case:
    """One net with its heads, its fixed batch and the lambda of each distance."""

    name: str
    net: nn.Module
    heads: nn.ModuleDict  # "1" .. "K-1"
    x: torch.Tensor
    y: torch.Tensor
    lambdas: dict
    methods: tuple

    def copy(self, dtype=torch.float64):
        """A fresh (net, heads, x) at the initial values."""
        net, heads = copy.deepcopy(self.net).to(dtype), copy.deepcopy(self.heads).to(dtype)
        return net.train(), heads.train(), self.x.to(dtype, copy=True)


def make_case(name, seed=None):
    generator = torch.Generator().manual_seed(SEEDS[name] if seed is None else seed)
    if name == "convnet":
        net = ConvNet()
        heads = nn.ModuleDict({"1": PoolLinearHead(8, 5), "2": PoolLinearHead(12, 5)})
        shape, classes = (8, 2, 8, 8), 5
    elif name == "unet":
        net = UNet()
        heads = nn.ModuleDict({str(k): PoolLinearHead(c, 5) for k, c in ((1, 6), (2, 8), (3, 6))})
        shape, classes = (8, 2, 8, 8), 5
    else:
        net = Transformer()
        heads = nn.ModuleDict({"1": TokenHead(16, 4)})
        shape, classes = (6, 7, 10), 4
    randomise(net, generator)
    randomise(heads, generator)
    x = torch.randn(shape, generator=generator, dtype=torch.float32).to(torch.float64)
    y = torch.randint(0, classes, shape[:1], generator=generator)
    methods = ("bp", "local", "exact_squared", "exact_relative", "exact_cosine") + EXTRA_METHODS[name]
    return Case(name, net, heads, x, y, LAMBDAS[name], methods)


# ---------------------------------------------------------------- the method


def squared(g, e):
    return g.shape[0] * ((g - e) ** 2).sum()


def relative(g, e):
    return ((g - e) ** 2).sum() / ((e**2).sum() + (g**2).sum())


def cosine(g, e):
    return 1.0 - cosine_similarity(g, e)


def cosine_similarity(g, e):
    return (g * e).sum() / (g.norm() * e.norm())


DISTANCES = {"squared": squared, "relative": relative, "cosine": cosine}


def together(tensors):
    """The tensors of a boundary as one, [B, all their elements]."""
    return torch.cat([t.flatten(1) for t in tensors], 1)


def apart(whole, tensors):
    """The other way round: parts of `whole` in the shapes of the tensors."""
    parts = whole.split([t[0].numel() for t in tensors], 1)
    return [part.reshape(t.shape) for part, t in zip(parts, tensors)]


@dataclass
class Part:
    """One gradient-isolated module: its forward (tensors -> its output and what is carried along, or its output alone),
    its head (None: its output is the logits), its parameters."""

    forward: object
    head: object
    parameters: dict
    norms: list  # every BatchNorm of the network


def make_parts(net, heads, whole):
    """The modules in data order; `whole` is K = 1, plain backpropagation."""
    if whole:
        return [Part(net, None, dict(net.named_parameters()), [])]
    norms, parts = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)], []
    for k, (forward, prefixes) in enumerate(net.segments(), 1):
        head = heads[str(k)] if str(k) in heads else None
        parameters = {n: p for n, p in net.named_parameters() if n.startswith(prefixes)}
        if head is not None:
            parameters |= {f"head.{k}.{n}": p for n, p in head.named_parameters()}
        parts.append(Part(forward, head, parameters, norms))
    return parts


@dataclass(frozen=True)
class Method:
    optimizer: object  # parameters -> torch optimizer
    whole: bool = False
    distance: str = ""  # "": no reconciliation
    mode: str = ""  # "exact" | "fd_free"


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def sgd_nesterov(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)


METHODS = {
    "bp": Method(sgd, whole=True),
    "local": Method(sgd),
    "exact_squared": Method(sgd, distance="squared", mode="exact"),
    "exact_relative": Method(sgd, distance="relative", mode="exact"),
    "exact_cosine": Method(sgd, distance="cosine", mode="exact"),
    "fd_free_cosine": Method(sgd, distance="cosine", mode="fd_free"),
    "local_adamw": Method(adamw),
    "local_sgd_nesterov": Method(sgd_nesterov),
}
FD_FREE_STEP = 1e-2  # s in t = s * |x| / |v|

CASES = ("convnet", "transformer", "unet")
SEEDS = {
    "convnet": 1481,  # of 17000 seeds tried: no ReLU or max-pool input within 2.9e-5 of a kink in any method and step
    "transformer": 19,
    "unet": 5,
}
LAMBDAS = {
    "unet": {"squared": 1.0, "relative": 0.1, "cosine": 0.3},
    "convnet": {"squared": 1.0, "relative": 0.1, "cosine": 0.3},
    "transformer": {"squared": 1.0, "relative": 0.1, "cosine": 0.3},
}
EXTRA_METHODS = {
    "convnet": ("local_adamw", "local_sgd_nesterov"),
    "transformer": ("fd_free_cosine",),
    "unet": ("fd_free_cosine",),
}


@dataclass
class StepRecord:
    """What one step showed: one entry per module in `loss`, `accuracy`, `x`, `e`; one per boundary in the rest.
    `x`, `e` and `g` are of every tensor that crosses; of one that the module does not use, g is None."""

    loss: list = field(default_factory=list)
    accuracy: list = field(default_factory=list)
    discord: list = field(default_factory=list)
    cosine: list = field(default_factory=list)
    ratio: list = field(default_factory=list)
    distance: list = field(default_factory=list)
    x: list = field(default_factory=list)
    e: list = field(default_factory=list)
    g: list = field(default_factory=list)
    grad: dict = field(default_factory=dict)


def local_loss(part, x_in, y):
    """(L_k, x_k and what is carried along, logits): mean softmax cross-entropy of module and head."""
    x_out = as_tuple(part.forward(*x_in))
    logits = x_out[0] if part.head is None else part.head(x_out[0])
    return F.cross_entropy(logits, y), x_out, logits


@contextlib.contextmanager
def running_statistics_kept(norms):
    """They are updated once a step, by the first pass."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    yield
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


def output_gradients(loss, x_out, x_in, e_prev):
    """dL_k by every tensor that is handed on. What only passes through was not made here: its gradient passes too."""
    passed = {id(x): e for x, e in zip(x_in, e_prev or [])}
    own = [x for x in x_out if id(x) not in passed]
    passed |= dict(zip(map(id, own), torch.autograd.grad(loss, own, retain_graph=True)))
    return [passed[id(x)] for x in x_out]


def compared(loss, x_in, e_prev, create_graph=True):
    """(tensors that the module uses, g, e of these, g of every tensor): what is compared at the boundary before it."""
    g = torch.autograd.grad(loss, x_in, create_graph=create_graph, allow_unused=True)
    used = [(x, g, e) for x, g, e in zip(x_in, g, e_prev) if g is not None]
    return [x for x, _, _ in used], together([g for _, g, _ in used]), together([e for _, _, e in used]), g


def total_gradient(part, method, lambda_, loss, g, e_prev, x_in, used, y):
    """d(L_k + lambda D(g_k, e_{k-1})) / d parameters, by the method's way; e_{k-1} is a constant. `used` are the
    tensors of x_in that g is of."""
    parameters = list(part.parameters.values())
    if not method.distance or g is None:
        return torch.autograd.grad(loss, parameters)
    distance = DISTANCES[method.distance]
    if method.mode == "exact":
        return torch.autograd.grad(loss + lambda_ * distance(g, e_prev), parameters)
    # Free finite difference: (lambda / t) [G(x + t v) - G(x)] with v = dD/dg held constant.
    g_leaf = g.detach().requires_grad_()
    (v,) = torch.autograd.grad(distance(g_leaf, e_prev), g_leaf)
    t = FD_FREE_STEP * together(used).detach().norm() / v.norm()
    at_x = torch.autograd.grad(loss, parameters)
    there = {id(x): x.detach() + t * step for x, step in zip(used, apart(v, used))}
    with running_statistics_kept(part.norms):
        moved_loss, _, _ = local_loss(part, [there.get(id(x), x) for x in x_in], y)
    at_moved = torch.autograd.grad(moved_loss, parameters)
    return [a + lambda_ / t * (b - a) for a, b in zip(at_x, at_moved)]


def train_step(parts, optimizers, method, lambda_, x, y):
    """One step in METHOD order: module by module, each updated before the next one runs on its detached x_k."""
    record = StepRecord()
    x_in, e_prev = (x,), None
    for part, optimizer in zip(parts, optimizers):
        first, last = e_prev is None, part.head is None
        x_in = [x.detach().requires_grad_(not first) for x in x_in]
        loss, x_out, logits = local_loss(part, x_in, y)
        handed_on = None if last else output_gradients(loss, x_out, x_in, e_prev)
        used, g, e = None, None, None
        if not first:
            used, g, e, of_each = compared(loss, x_in, e_prev)
            record.discord.append(squared(g, e).item())
            record.cosine.append(cosine_similarity(g, e).item())
            record.ratio.append((g.norm() / e.norm()).item())
            if method.distance:
                record.distance.append(DISTANCES[method.distance](g, e).item())
            record.g.append([None if g is None else g.detach() for g in of_each])
        gradient = total_gradient(part, method, lambda_, loss, g, e, x_in, used, y)
        record.loss.append(loss.item())
        record.accuracy.append((logits.argmax(1) == y).to(torch.float64).mean().item())
        record.x.append([x.detach() for x in x_out])
        record.e.append(handed_on)
        for (name, parameter), value in zip(part.parameters.items(), gradient):
            parameter.grad = value.detach()
            record.grad[name] = value.detach().clone()
        optimizer.step()
        x_in, e_prev = record.x[-1], handed_on
    return record


def state(net, parts):
    """Parameters in training plus running statistics, as {torch name: tensor}."""
    values = {n: p for part in parts for n, p in part.parameters.items()}
    values |= {n: b for n, b in net.named_buffers() if "running" in n}
    return {n: v.detach().clone() for n, v in values.items()}


def run_method(case, method_name, dtype=torch.float64):
    """(step records, [state after step 1 .. STEPS], eval-mode logits at the end)."""
    method = METHODS[method_name]
    net, heads, x = case.copy(dtype)
    parts = make_parts(net, heads, method.whole)
    optimizers = [method.optimizer(list(part.parameters.values())) for part in parts]
    lambda_ = case.lambdas.get(method.distance, 0.0)
    records, states = [], []
    for _ in range(STEPS):
        records.append(train_step(parts, optimizers, method, lambda_, x, case.y))
        states.append(state(net, parts))
    with torch.no_grad():
        logits = net.eval()(x)
    return records, states, logits


# ---------------------------------------------------------------- ONNX


def export_onnx(case):
    """The initial net as (ONNX bytes, {torch name: ONNX name} of the transposed copies)."""
    net, _, x = case.copy(torch.float32)
    buffer = io.BytesIO()
    keep_batchnorm = case.name != "transformer"  # the default eval export folds it into Conv
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(), (x,), buffer, dynamo=False, opset_version=17,
            training=torch.onnx.TrainingMode.PRESERVE if keep_batchnorm else torch.onnx.TrainingMode.EVAL,
            do_constant_folding=not keep_batchnorm,
            input_names=["input"], output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        )  # fmt: skip
    model = onnx.load_from_string(buffer.getvalue())
    renamed = name_transposed_copies(model.graph, net)
    model.graph.name = case.name
    onnx.checker.check_model(model, full_check=True)
    known = {renamed.get(n, n) for n, _ in net.named_parameters()}
    known |= {n for n, _ in net.named_buffers() if "running" in n}
    found = {i.name for i in model.graph.initializer}
    assert known <= found, f"missing initializers {sorted(known - found)}"
    assert all(i.startswith("onnx::") for i in found - known), f"unexpected initializers {sorted(found - known)}"
    return model.SerializeToString(deterministic=True), renamed


def name_transposed_copies(graph, net):
    """Gives the anonymous [in, out] copies of Linear weights the name `<layer>.weight_t`, found by value."""
    weights = {n: p.detach().numpy() for n, p in net.named_parameters() if p.dim() == 2}
    renamed = {}
    for initializer in graph.initializer:
        if not initializer.name.startswith("onnx::MatMul"):
            continue
        value = numpy_helper.to_array(initializer)
        (source,) = [n for n, w in weights.items() if w.T.shape == value.shape and np.array_equal(w.T, value)]
        old, new = initializer.name, f"{source}_t"
        renamed[source] = new
        initializer.name = new
        for node in graph.node:
            for i, name in enumerate(node.input):
                if name == old:
                    node.input[i] = new
    return renamed


# ---------------------------------------------------------------- files


def npz_bytes(arrays):
    """A plain zip (deflate, no zip64, fixed dates) of C-order .npy v1 files: the same bytes every time."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            npy = io.BytesIO()
            np.lib.format.write_array(npy, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), npy.getvalue(), zipfile.ZIP_DEFLATED)
    return out.getvalue()


def golden_arrays(case, renamed, dtype=torch.float64):
    """Every array of `<case>.goldens.npz`, under the ONNX names and in the ONNX layouts."""

    def put(arrays, prefix, values):
        for name, value in values.items():
            if name in renamed:
                name, value = renamed[name], value.T
            arrays[f"{prefix}/{name}"] = value.detach().to(torch.float64).numpy()

    arrays = {"x": case.x.numpy(), "y": case.y.numpy()}
    put(arrays, "init", {f"head.{n}": p for n, p in case.heads.named_parameters()})
    for name in case.methods:
        method = METHODS[name]
        records, states, logits = run_method(case, name, dtype)
        rows = ["loss", "accuracy"]
        rows += [] if method.whole else ["discord", "cosine", "ratio"]
        rows += ["distance"] if method.distance else []
        for row in rows:
            arrays[f"{name}/{row}"] = np.array([getattr(r, row) for r in records], dtype=np.float64)
        if method.distance:
            arrays[f"{name}/lambda"] = np.array([case.lambdas[method.distance]])
        put(arrays, f"{name}/grad1", records[0].grad)
        put(arrays, f"{name}/param1", states[0])
        put(arrays, f"{name}/param5", states[-1])
        if name == "local":  # the first pass is the same in every method but bp
            for k, crossing in enumerate(zip(records[0].x, records[0].e, records[0].g), 1):
                for i, (x_k, e_k, g_next) in enumerate(zip(*crossing)):
                    tensor = f".{i}" if i else ""
                    values = {f"x{k}{tensor}": x_k, f"e{k}{tensor}": e_k, f"g{k + 1}{tensor}": g_next}
                    put(arrays, "boundary1", {n: v for n, v in values.items() if v is not None})
        if name == "exact_cosine":
            arrays["eval/logits"] = logits.to(torch.float64).numpy()
    return arrays


def main():
    for name in CASES:
        case = make_case(name)
        model, renamed = export_onnx(case)
        heads = {f"head.{n}": p.detach().to(torch.float32).numpy() for n, p in case.heads.named_parameters()}
        files = {
            f"{name}.onnx": model,
            f"{name}.heads.safetensors": safetensors_bytes(heads),
            f"{name}.goldens.npz": npz_bytes(golden_arrays(case, renamed)),
        }
        for file, content in files.items():
            (HERE / file).write_bytes(content)
            print(f"{file}: {len(content)} bytes")


if __name__ == "__main__":
    main()
