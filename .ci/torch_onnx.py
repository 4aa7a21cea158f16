"""An ONNX file's graph computed by PyTorch, operator by operator, so that its autograd differentiates it.

`Graph.values` computes values from others that are given, with weights that a plan names (docs/spec.md says how). What
a ReLU, a clip or a max-pool chooses can be kept and used again, as frozen kinks are (docs/method.md). BatchNorm
normalises by the batch, as in training.
"""

import numpy
import onnx
import torch
from onnx import numpy_helper
from torch.nn import functional as F

OPS = {}


def op(*names):
    def add(f):
        OPS.update(dict.fromkeys(names, f))
        return f

    return add


class Call:
    """A node with its operands: `c[i]` is operand i or None, `c.get` an attribute, `c.chosen` a choice that is kept."""

    def __init__(self, node, operands, opset, choices):
        self.node, self.operands, self.opset, self.choices = node, operands, opset, choices
        self.attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}

    def __getitem__(self, i):
        return self.operands[i] if i < len(self.operands) else None

    def get(self, name, default=None):
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def ints(self, i, name):
        """A list that newer opsets have as operand i, older ones as an attribute."""
        if self[i] is not None:
            return [int(v) for v in self[i].reshape(-1)]
        return self.get(name)

    def chosen(self, make):
        key = self.node.output[0]
        if key not in self.choices.kept:
            self.choices.kept[key] = make().detach()
        return self.choices.kept[key]

    def at_kink(self, x, away):
        """The operand of a kink, moved where the pass is told to; `away` says of each element how far the kink is."""
        key = self.node.output[0]
        if self.choices.seen is not None and key not in self.choices.seen:
            self.choices.seen[key] = x.detach(), away(x.detach())
        if key in self.choices.moved:
            places, by = self.choices.moved[key]
            x = x + torch.zeros_like(x.detach()).flatten().index_add(0, places, by.to(x.dtype)).reshape(x.shape)
        return x


class Choices:
    """What was chosen in a pass: another pass with the same object chooses the same. Operands of kinks are moved by
    `moved`: by the kink's output, flat indices and what is added there. `seen` takes the operands as they were, and how
    far each was from its kink."""

    def __init__(self, moved=None, seen=None):
        self.kept, self.moved, self.seen = {}, moved or {}, seen


def nearer(low, high):
    """How far the nearer of two bounds is."""
    return lambda x: torch.where((low - x).abs() < (high - x).abs(), low - x, high - x)


def elementwise(names):
    for name, f in names.items():
        op(name)(lambda c, f=f: f(*c.operands))


elementwise({
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Sqrt": torch.sqrt, "Erf": torch.erf, "Tanh": torch.tanh,
    "Exp": torch.exp, "Neg": torch.neg, "Sigmoid": torch.sigmoid, "Reciprocal": torch.reciprocal, "Cos": torch.cos,
    "Sin": torch.sin, "And": torch.logical_and, "Or": torch.logical_or, "Not": torch.logical_not, "Log": torch.log,
    "IsNaN": torch.isnan, "Identity": lambda x: x, "Abs": torch.abs, "BitwiseAnd": torch.bitwise_and,
})  # fmt: skip
for name, f in {
    "Equal": torch.eq, "Greater": torch.gt, "Less": torch.lt, "LessOrEqual": torch.le, "GreaterOrEqual": torch.ge
}.items():
    op(name)(lambda c, f=f: c.chosen(lambda: f(c[0], c[1])))


@op("Div")
def div(c):
    if c[0].is_floating_point():
        return c[0] / c[1]
    return torch.div(c[0], c[1], rounding_mode="trunc")


@op("Mod")
def mod(c):
    return torch.fmod(c[0], c[1]) if c.get("fmod", 0) else torch.remainder(c[0], c[1])


@op("Pow")
def power(c):
    return torch.pow(c[0], c[1].item() if c[1].numel() == 1 else c[1])


@op("Relu")
def relu(c):
    x = c.at_kink(c[0], torch.neg)
    return x * c.chosen(lambda: x > 0).to(x.dtype)


@op("Clip")
def clip(c):
    low = c[1].item() if c[1] is not None else c.get("min", -torch.inf)
    high = c[2].item() if c[2] is not None else c.get("max", torch.inf)
    x = c.at_kink(c[0], nearer(low, high))
    side = c.chosen(lambda: (x >= high).to(torch.int8) - (x <= low).to(torch.int8))
    inside = torch.where(side == 0, x, 0.0)
    return inside + (side > 0) * (high if high < torch.inf else 0.0) + (side < 0) * (low if low > -torch.inf else 0.0)


@op("HardSigmoid")
def hard_sigmoid(c, x=None, alpha=None, beta=None):
    x = c[0] if x is None else x
    y = (c.get("alpha", 0.2) if alpha is None else alpha) * x + (c.get("beta", 0.5) if beta is None else beta)
    y = c.at_kink(y, nearer(0.0, 1.0))
    side = c.chosen(lambda: (y >= 1).to(torch.int8) - (y <= 0).to(torch.int8))
    return torch.where(side == 0, y, (side > 0).to(y.dtype))


@op("HardSwish")
def hard_swish(c):
    return c[0] * hard_sigmoid(c, c[0], 1 / 6, 0.5)


@op("Gelu")
def gelu(c):
    return F.gelu(c[0], approximate=c.get("approximate", "none"))


@op("Where")
def where(c):
    return torch.where(c[0], *torch.broadcast_tensors(c[1], c[2]))


@op("Softmax")
def softmax(c):
    return torch.softmax(c[0], c.get("axis", -1))


@op("MatMul")
def matmul(c):
    return torch.matmul(c[0], c[1])


@op("Gemm")
def gemm(c):
    a = c[0].mT if c.get("transA", 0) else c[0]
    b = c[1].mT if c.get("transB", 0) else c[1]
    y = c.get("alpha", 1.0) * (a @ b)
    return y if c[2] is None else y + c.get("beta", 1.0) * c[2]


def padded(c, x, value=0.0):
    """The operand with its pads, of windows of two dimensions."""
    rank = x.dim() - 2
    pads = list(c.get("pads", [0] * 2 * rank))
    auto = c.get("auto_pad", "NOTSET")
    assert auto in ("NOTSET", "VALID"), auto
    order = [p for d in reversed(range(rank)) for p in (pads[d], pads[d + rank])]
    return F.pad(x, order, value=value) if any(order) else x


def depthwise(x, w, bias, strides):
    """A filter a channel, as a sum over the filter's places: PyTorch's own takes many times as long in f64."""
    rows, cols = [(n - k) // s + 1 for n, k, s in zip(x.shape[2:], w.shape[2:], strides)]
    y = 0 if bias is None else bias.reshape(1, -1, 1, 1)
    for i in range(w.shape[2]):
        for j in range(w.shape[3]):
            ends = i + (rows - 1) * strides[0] + 1, j + (cols - 1) * strides[1] + 1
            y = y + x[:, :, i : ends[0] : strides[0], j : ends[1] : strides[1]] * w[:, :, i, j].reshape(1, -1, 1, 1)
    return y


@op("Conv")
def conv(c):
    f = {3: F.conv1d, 4: F.conv2d}[c[0].dim()]
    x = padded(c, c[0])
    if c[0].dim() == 4 and c.get("group", 1) == x.shape[1] == c[1].shape[0] > 1 and c.get("dilations", [1, 1]) == [1, 1]:
        return depthwise(x, c[1], c[2], c.get("strides", [1, 1]))
    return f(x, c[1], c[2], c.get("strides", 1), 0, c.get("dilations", 1), c.get("group", 1))


@op("ConvTranspose")
def conv_transpose(c):
    pads, rank = c.get("pads", [0, 0, 0, 0]), c[0].dim() - 2
    assert pads[:rank] == pads[rank:] and rank == 2
    more = c.get("output_padding", [0, 0])
    return F.conv_transpose2d(c[0], c[1], c[2], c.get("strides", 1), pads[:2], more, c.get("group", 1), c.get("dilations", 1))


@op("MaxPool")
def max_pool(c):
    """By the position of the winners, each of which is kept."""
    kernel, strides, ceil = c.get("kernel_shape"), c.get("strides", [1, 1]), bool(c.get("ceil_mode", 0))

    def best(x):
        x = padded(c, x, -torch.inf)
        return x, F.max_pool2d(x, kernel, strides, 0, c.get("dilations", 1), ceil, return_indices=True)[1]

    x, place = best(c.at_kink(c[0], lambda x: behind(c, x, kernel, strides, *best(x))))
    place = c.chosen(lambda: place)
    return x.flatten(2).gather(2, place.flatten(2)).reshape(place.shape)


def behind(c, x, kernel, strides, wide, places):
    """How far an element is behind the winner of a window whose second it is; of others infinity."""
    assert c.get("dilations", [1, 1]) == [1, 1]

    def windows(x):
        ends = [(n - 1) * s + k - size for n, s, k, size in zip(places.shape[2:], strides, kernel, x.shape[2:])]
        x = F.pad(x, (0, ends[1], 0, ends[0]), value=0 if x.dtype == torch.int64 else -torch.inf)
        return x.unfold(2, kernel[0], strides[0]).unfold(3, kernel[1], strides[1]).flatten(4)

    two = windows(wide).topk(2)
    index = windows(padded(c, torch.arange(x.numel()).reshape(x.shape), 0))
    second = index.gather(-1, two.indices)[..., 1]
    lag = two.values[..., 0] - two.values[..., 1]
    away = torch.full_like(x, torch.inf).flatten()
    return away.scatter_reduce(0, second.flatten(), lag.flatten(), "amin").reshape(x.shape)


@op("AveragePool")
def average_pool(c):
    counts = bool(c.get("count_include_pad", 0))
    pads = c.get("pads", [0, 0, 0, 0])
    assert pads[:2] == pads[2:]
    return F.avg_pool2d(c[0], c.get("kernel_shape"), c.get("strides", 1), pads[:2], bool(c.get("ceil_mode", 0)), counts)


@op("GlobalAveragePool")
def global_average_pool(c):
    return c[0].mean((2, 3), keepdim=True)


@op("BatchNormalization")
def batch_norm(c):
    over = [0, *range(2, c[0].dim())]
    wide = [1, -1] + [1] * (c[0].dim() - 2)
    mean, var = c[0].mean(over, keepdim=True), c[0].var(over, correction=0, keepdim=True)
    return (c[0] - mean) / torch.sqrt(var + c.get("epsilon", 1e-5)) * c[1].reshape(wide) + c[2].reshape(wide)


@op("LayerNormalization")
def layer_norm(c):
    axis = c.get("axis", -1)
    return F.layer_norm(c[0], c[0].shape[axis:], c[1], c[2], c.get("epsilon", 1e-5))


@op("ReduceMean", "ReduceSum")
def reduce(c):
    axes = c.ints(1, "axes") or list(range(c[0].dim()))
    f = torch.mean if c.node.op_type == "ReduceMean" else torch.sum
    return f(c[0], axes, keepdim=bool(c.get("keepdims", 1)))


@op("Reshape")
def reshape(c):
    shape = [int(v) for v in c[1]]
    return c[0].reshape([c[0].shape[i] if v == 0 and not c.get("allowzero", 0) else v for i, v in enumerate(shape)])


@op("Flatten")
def flatten(c):
    axis = c.get("axis", 1)
    return c[0].reshape(int(numpy.prod(c[0].shape[:axis], dtype=int)), -1)


@op("Transpose")
def transpose(c):
    return c[0].permute(c.get("perm", list(reversed(range(c[0].dim())))))


@op("Squeeze")
def squeeze(c):
    axes = c.ints(1, "axes")
    return c[0].squeeze() if axes is None else c[0].squeeze(axes)


@op("Unsqueeze")
def unsqueeze(c):
    axes = c.ints(1, "axes")
    rank = c[0].dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        operand = c[0] if axis is None else c.operands[0].unsqueeze(axis)
        c.operands[0] = operand
    return c.operands[0]


@op("Concat")
def concat(c):
    return torch.cat(c.operands, c.get("axis"))


@op("Split")
def split(c):
    sizes, axis = c.ints(1, "split"), c.get("axis", 0)
    count = len(c.node.output)
    return c[0].split(sizes or -(-c[0].shape[axis] // count), axis)


@op("Slice")
def slices(c):
    x, starts, ends = c[0], c.ints(1, "starts"), c.ints(2, "ends")
    axes, steps = c.ints(3, "axes") or range(len(starts)), c.ints(4, "steps") or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps):
        places = range(x.shape[axis])[slice(start, end if end > -(2**31) else None, step)]
        x = x.index_select(axis, torch.tensor(places, dtype=torch.int64))
    return x


@op("Gather")
def gather(c):
    axis, index = c.get("axis", 0) % c[0].dim(), c[1].long()
    index = torch.where(index < 0, index + c[0].shape[axis], index)
    y = c[0].index_select(axis, index.reshape(-1))
    return y.reshape((*c[0].shape[:axis], *index.shape, *c[0].shape[axis + 1 :]))


@op("GatherND")
def gather_nd(c):
    batch, index = c.get("batch_dims", 0), c[1].long()
    assert batch == 0
    return c[0][tuple(index[..., i] for i in range(index.shape[-1]))]


@op("GatherElements")
def gather_elements(c):
    return c[0].gather(c.get("axis", 0), c[1].long())


@op("ScatterND")
def scatter_nd(c):
    y, index = c[0].clone(), c[1].long()
    y[tuple(index[..., i] for i in range(index.shape[-1]))] = c[2]
    return y


@op("Expand")
def expand(c):
    return c[0] * torch.ones([int(v) for v in c[1]], dtype=c[0].dtype) if c[0].dtype != torch.bool else (
        c[0] | torch.zeros([int(v) for v in c[1]], dtype=torch.bool)
    )


@op("Tile")
def tile(c):
    return c[0].tile([int(v) for v in c[1]])


@op("Pad")
def pad(c):
    assert c.get("mode", "constant") == "constant" and c[3] is None
    pads, rank = c.ints(1, "pads"), c[0].dim()
    order = [p for d in reversed(range(rank)) for p in (pads[d], pads[d + rank])]
    return F.pad(c[0], order, value=c[2].item() if c[2] is not None else 0.0)


@op("Cast")
def cast(c):
    kinds = {1: c.choices.real, 11: c.choices.real, 6: torch.int32, 7: torch.int64, 9: torch.bool}
    return c[0].to(kinds[c.get("to")])


@op("Shape")
def shape(c):
    return torch.tensor(c[0].shape[c.get("start", 0) : c.get("end", None)])


@op("Range")
def arange(c):
    return torch.arange(*(v.item() for v in c.operands))


@op("ConstantOfShape")
def constant_of_shape(c):
    value = torch.from_numpy(numpy_helper.to_array(c.get("value"))) if c.get("value") is not None else torch.zeros(1)
    value = value.to(c.choices.real) if value.is_floating_point() else value
    return value.reshape(()).expand([int(v) for v in c[0]]).clone()


@op("Trilu")
def trilu(c):
    k = int(c[1]) if c[1] is not None else 0
    return torch.triu(c[0], k) if c.get("upper", 1) else torch.tril(c[0], k)


@op("Max", "Min")
def extreme(c):
    assert len(c.operands) == 2
    greater = torch.ge if c.node.op_type == "Max" else torch.le
    a, b = torch.broadcast_tensors(c[0], c[1])
    a = c.at_kink(a, lambda a: b.detach() - a) if a.is_floating_point() else a
    return torch.where(c.chosen(lambda: greater(a, b)), a, b)


def has_numbers(t):
    return 0 in t.dims or bool(t.raw_data or t.float_data or t.int64_data or t.int32_data or t.double_data)


class Graph:
    """A model's nodes, by what they make. `weights` are a plan's, by name; real numbers are of type `real`."""

    def __init__(self, path, weights, real):
        model = onnx.load(path)
        self.opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        self.output = model.graph.output[0].name
        self.maker = {o: n for n in model.graph.node for o in n.output if o}
        self.weights, self.real = weights, real
        # A plan's model has no numbers of its weights.
        self.constants = {t.name: self.read(t) for t in model.graph.initializer if has_numbers(t)}

    def read(self, t):
        return self.tensor(numpy_helper.to_array(t))

    def tensor(self, array):
        t = torch.from_numpy(numpy.array(array))
        return t.to(self.real) if t.is_floating_point() else t

    def weight(self, node, slot):
        """The weight that operand `slot` is: of a node that uses an initializer several times, each use is one of its own.
        The first use in the graph has the initializer's name."""
        names = [node.input[slot]]
        while (maker := self.maker.get(names[-1])) is not None and maker.op_type == "Identity":
            names.append(maker.input[0])
        uses = [i for i, name in enumerate(node.input) if name == node.input[slot]]
        for each in names:
            own = [f"{each}@{node.name}", *(f"{each}@{node.name}#{n}" for n in range(2, len(uses) + 1))]
            known = [name for name in own if name in self.weights]
            if len(known) < len(uses) and each in self.weights:
                known.insert(0, each)
            if known:
                return self.weights[known[min(uses.index(slot), len(known) - 1)]]
        return None

    def values(self, names, given, choices):
        """Computes values, in one pass, from given ones, which are left as they are."""
        known = dict(given)
        choices.real = self.real
        waiting = list(names)
        while waiting:
            at = waiting[-1]
            if at in known:
                waiting.pop()
                continue
            if at not in self.maker:
                known[at] = self.constants[at]
                continue
            node = self.maker[at]
            if node.op_type == "Constant":
                value = onnx.helper.get_attribute_value(node.attribute[0])
                array = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
                known[at] = self.tensor(array)
                continue
            operands = [known.get(n) if n not in self.constants else None for n in node.input]
            for i, n in enumerate(node.input):
                if n and operands[i] is None and (own := self.weight(node, i)) is not None:
                    operands[i] = own
                elif n in known:
                    operands[i] = known[n]
            missing = [n for n, x in zip(node.input, operands) if n and x is None]
            if missing:
                waiting.extend(missing)
                continue
            made = OPS[node.op_type](Call(node, operands, self.opset, choices))
            known.update(zip(node.output, made if isinstance(made, (tuple, list)) else [made]))
        return [known[name] for name in names]
