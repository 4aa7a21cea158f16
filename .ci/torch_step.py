"""What PyTorch's autograd makes of a plan's training step: the gradients of every weight, module by module, by the
formulas of docs/method.md, on the graph of the plan's own model.onnx (.ci/torch_onnx.py) with the plan's weights.

Everything that crosses a boundary is detached. Second derivatives are autograd's own; finite differences take the same
length of step as slrc and keep the choices of the first pass. The distance is the cosine.
"""

import torch
import yaml
from safetensors.torch import load_file
from torch.nn import functional as F
from torch_methods import LAMBDA, STEP, distance
from torch_onnx import Choices, Graph


class Plan:
    """A plan folder, read for one precision."""

    def __init__(self, folder, real):
        text = (folder / "plan.yaml").read_text()
        head = yaml.load(text[: text.index("\nbuffers:")], Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        self.heads = [line.split(":")[1].strip() for line in text.splitlines() if line.startswith("  head: ")]
        self.output = head["model"]["output"]
        # What crosses at each: the module's output first, then what is carried along.
        self.boundaries = [[t["value"] for t in [b, *b.get("carried", [])]] for b in head.get("boundaries", [])]
        tensors = {n: t.to(real) for n, t in load_file(folder / "weights.safetensors").items()}
        self.trained = [{p["name"] for p in head["parameters"] if p["module"] == k + 1 and p["role"] == "weight"}
                        for k in range(len(self.heads))]  # fmt: skip
        for name in set.union(*self.trained):
            tensors[name].requires_grad_()
        self.weights, self.real = tensors, real
        self.graph = Graph(str(folder / "model.onnx"), tensors, real)


def head_logits(kind, x, w, per_token):
    """A local head with weights `w` by layer and kind; `per_token` where the network classifies every token."""
    if kind == "pool-linear":
        return F.linear(F.adaptive_avg_pool2d(x, 2).flatten(1), w["linear.weight"], w["linear.bias"])
    if kind == "token":
        x = F.layer_norm(x, x.shape[-1:], w["norm.weight"], w["norm.bias"])
        return F.linear(x if per_token else x.mean(1), w["linear.weight"], w["linear.bias"])
    if kind == "linear":
        return F.linear(x if per_token else x.flatten(1), w["linear.weight"], w["linear.bias"])
    assert kind == "pixel", kind
    return F.conv2d(x, w["conv.weight"], w["conv.bias"])


def cross_entropy(logits, y):
    """Mean over samples, tokens or pixels."""
    if logits.dim() == 4:
        if logits.shape[2:] != y.shape[1:]:
            logits = F.interpolate(logits, y.shape[1:], mode="nearest")
    elif logits.dim() == 3:
        logits = logits.flatten(0, 1)
    return F.cross_entropy(logits, y if logits.dim() == 4 else y.flatten())


class Module:
    """Module k of a plan, from 0."""

    def __init__(self, plan, k, inputs, y):
        self.plan, self.k, self.inputs, self.y = plan, k, inputs, y
        self.last = k == len(plan.boundaries)
        prefix = f"head.{k + 1}."
        self.head = {n.removeprefix(prefix): w for n, w in plan.weights.items() if n.startswith(prefix)}
        self.weights = {n: plan.weights[n] for n in sorted(plan.trained[k])}
        self.received = plan.boundaries[k - 1] if k else []
        self.handed_on = [plan.output] if self.last else plan.boundaries[k]

    def pass_(self, received, choices):
        """Loss, and what is handed on, of what was received by name."""
        out = self.plan.graph.values(self.handed_on, {**self.inputs, **received}, choices)
        per_token = self.y.dim() == 2
        logits = out[0] if self.last else head_logits(self.plan.heads[self.k], out[0], self.head, per_token)
        return cross_entropy(logits, self.y), out

    def step(self, mode, received, e, choices):
        """Gradients of the weights, and what is handed on with its gradients, both by name. What is only carried along
        is handed on with the gradient that it came with."""
        names, weights = list(self.weights), list(self.weights.values())
        received = {n: x.detach().requires_grad_() for n, x in received.items()}
        loss, out = self.pass_(received, choices)
        made = [] if self.last else [i for i, n in enumerate(self.handed_on) if n not in received]
        reconciled = mode != "off" and self.k > 0
        sources = list(received) if reconciled else []
        wanted = weights + [out[i] for i in made] + [received[n] for n in sources]
        # A weight before the first boundary's own uses may be unused where a value is known without it.
        grads = list(torch.autograd.grad(loss, wanted, create_graph=reconciled and mode == "exact", allow_unused=True))
        own, grads = grads[: len(weights)], grads[len(weights) :]
        of_made, of_sources = grads[: len(made)], grads[len(made) :]
        if reconciled:
            # All that the module uses, side by side.
            used = [(n, g) for n, g in zip(sources, of_sources) if g is not None]
            flat = lambda tensors: torch.cat([t.flatten() for t in tensors])
            g, came = flat(g for _, g in used), flat(e[n] for n, _ in used)
            if mode == "exact":
                own = torch.autograd.grad(loss + LAMBDA * distance(g, came), weights, allow_unused=True)
            else:
                g = g.detach().requires_grad_()
                (v,) = torch.autograd.grad(distance(g, came), g)
                t = STEP * torch.linalg.vector_norm(flat(received[n].detach() for n, _ in used))
                t = t / torch.linalg.vector_norm(v)
                parts = v.split([received[n].numel() for n, _ in used])
                by = {n: t * part.reshape(received[n].shape) for (n, _), part in zip(used, parts)}
                moved = {n: (x + by[n] if n in by else x).detach() for n, x in received.items()}
                there = torch.autograd.grad(self.pass_(moved, choices)[0], weights, allow_unused=True)
                own = [None if a is None else a + LAMBDA / t * (b - a) for a, b in zip(own, there)]
        found = {n: torch.zeros_like(w) if g is None else g.detach() for n, w, g in zip(names, weights, own)}
        e = dict(e) | {self.handed_on[i]: g.detach() for i, g in zip(made, of_made)}
        return found, {n: x.detach() for n, x in zip(self.handed_on, out)}, {n: e[n] for n in self.handed_on if n in e}


def gradients(folder, mode, inputs, y, real=torch.float64, moved=None, seen=None):
    """Of every weight by name, module by module; `moved` and `seen` are those of torch_onnx.Choices."""
    plan = Plan(folder, real)
    inputs = {n: torch.from_numpy(v) for n, v in inputs.items()}
    inputs = {n: v.to(real) if v.is_floating_point() else v for n, v in inputs.items()}
    y, crossing, e, out = torch.from_numpy(y).long(), {}, {}, []
    for k in range(len(plan.heads)):
        found, crossing, e = Module(plan, k, inputs, y).step(mode, crossing, e, Choices(moved, seen))
        out.append(found)
    return out


def worst(reference, ours):
    """The largest difference from a tensor's gradient, of its largest number; of a tensor all of whose numbers are small
    beside its module's, of a thousandth of the module's largest."""
    error = 0.0
    for module in reference:
        scale = max(float(g.abs().max()) for g in module.values())
        for name, g in module.items():
            difference = float((ours[name].to(g.dtype).reshape(g.shape) - g).abs().max())
            error = max(error, difference / max(float(g.abs().max()), 1e-3 * scale))
    return error
