"""slrc's algorithms in PyTorch eager, written as one writes them there: end-to-end backpropagation, local learning, and
reconciliation by double backward and by finite differences (docs/method.md has the formulas and their symbols).

A network is a list of units, each a name that begins its parameters' names and a torch module; a module of the method
is a run of units with a local head, and the last one's head is the network's own. The distance is the cosine with
lambda 0.3. Unlike slrc's, the second pass of finite differences does not keep the first one's choices (kinks are free):
eager PyTorch has no place to keep them. Each module's weights are updated as soon as its gradients are there.
"""

import torch
from torch import nn

LAMBDA = 0.3
STEP = 1e-3


class ImageHead(nn.Sequential):
    """The head called pool-linear."""

    def __init__(self, channels, classes):
        super().__init__(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, classes))


class TokenHead(nn.Module):
    """The head called token."""

    def __init__(self, width, classes):
        super().__init__()
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x):
        return self.out(self.norm(x).mean(1))


def distance(g, e):
    """1 - cosine, over the whole batch."""
    return 1 - torch.sum(g * e) / (torch.linalg.vector_norm(g) * torch.linalg.vector_norm(e))


class Part:
    """One module of the method, with its head and its optimizer."""

    def __init__(self, units, head, lr):
        self.body, self.head = nn.Sequential(*units), head
        self.weights = [*self.body.parameters(), *head.parameters()]
        self.optimizer = torch.optim.SGD(self.weights, lr=lr, momentum=0.9)
        norms = (nn.BatchNorm1d, nn.BatchNorm2d)
        self.norms = [m for m in self.body.modules() if isinstance(m, norms)]

    def loss(self, x, y):
        """Local loss and the module's output."""
        z = self.body(x)
        return nn.functional.cross_entropy(self.head(z), y), z

    def update(self, gradients=None):
        """A step of the optimizer, with these gradients or with those that backward left."""
        if gradients is not None:
            for w, g in zip(self.weights, gradients):
                w.grad = g
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def moved(self, x, y):
        """Gradients at a moved input; running statistics stay."""
        momenta = [n.momentum for n in self.norms]
        for n in self.norms:
            n.momentum = 0.0
        gradients = torch.autograd.grad(self.loss(x, y)[0], self.weights)
        for n, m in zip(self.norms, momenta):
            n.momentum = m
        return gradients


def plain(part, x, y):
    """Backpropagation within a part: its output, detached."""
    loss, z = part.loss(x, y)
    loss.backward()
    part.update()
    return z.detach(), None


def first(part, x, y, last):
    """As `plain`, and the output's gradient through the head."""
    loss, z = part.loss(x, y)
    *gradients, e = torch.autograd.grad(loss, [*part.weights, z])
    part.update(gradients)
    return z.detach(), None if last else e


def exact(part, x, y, e, last):
    """Gradient of the loss and of the distance, by differentiating the input's gradient again."""
    x = x.requires_grad_()
    loss, z = part.loss(x, y)
    g, *own = torch.autograd.grad(loss, [x] if last else [x, z], create_graph=True)
    (loss + LAMBDA * distance(g, e)).backward(inputs=part.weights)
    own = own[0].detach() if own else None
    part.update()
    return z.detach(), own


def finite_difference(part, x, y, e, last):
    """The same by a second pass at an input moved along the distance's derivative."""
    x = x.requires_grad_()
    loss, z = part.loss(x, y)
    *here, g = torch.autograd.grad(loss, [*part.weights, x] if last else [*part.weights, z, x])
    own = None if last else here.pop()
    z, x = z.detach(), x.detach()
    del loss
    g.requires_grad_()
    (v,) = torch.autograd.grad(distance(g, e), g)
    t = STEP * torch.linalg.vector_norm(x) / torch.linalg.vector_norm(v)
    there = part.moved(x + t * v, y)
    with torch.no_grad():
        part.update([a + LAMBDA / t * (b - a) for a, b in zip(here, there)])
    return z, own


def step(method, parts, x, y):
    """One training step: every part in turn."""
    e = None
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if method in ("bp", "local"):
            x, e = plain(part, x, y)
        elif i == 0:
            x, e = first(part, x, y, last)
        else:
            rule = {"exact": exact, "finite-difference": finite_difference}[method]
            x, e = rule(part, x, y, e, last)


def numbers(units, modules, owner):
    """The module of each unit in a plan, by the modules' last nodes: those of PyTorch's older exporter have the units'
    names in their paths. Else by parameters, whose modules `owner` has; a unit without any stays with the one before
    it."""
    names = [name for name, _ in units]
    end = lambda node: max((i for i, name in enumerate(names) if name in node.split("/")), default=None)
    ends = [end(m["last"]) for m in modules[:-1]]
    if None not in ends:
        return [1 + sum(i > end for end in ends) for i in range(len(units))]
    out = []
    for name, unit in units:
        known = {owner[n] for n in (f"{name}.{p}" if name else p for p, _ in unit.named_parameters()) if n in owner}
        out.append(min(known, default=out[-1] if out else 1))
    return out


def split(units, tail, modules, owner, x, classes, lr):
    """A plan's modules in a network, `tail` being its own head; see `numbers`."""
    groups = {}
    for (_, unit), number in zip(units, numbers(units, modules, owner)):
        groups.setdefault(number, []).append(unit)
    parts, h = [], x[:2]
    for number, group in sorted(groups.items()):
        with torch.no_grad():
            for unit in group:
                h = unit.eval()(h)
                unit.train()
        head = ImageHead(h.shape[1], classes) if h.dim() == 4 else TokenHead(h.shape[-1], classes)
        parts.append(Part(group, tail if number == len(modules) else head, lr))
    return parts
