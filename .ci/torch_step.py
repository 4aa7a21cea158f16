"""What PyTorch's autograd makes of a plan's training step: the gradients of every weight, module by module, by the
formulas of docs/method.md, on the graph of the plan's own model.onnx (.ci/torch_onnx.py) with the plan's weights.

Second derivatives are autograd's own; finite differences take the same length of step as slrc and keep the choices of
the first pass. The distance is the cosine.
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
        self.boundaries = [b["value"] for b in head.get("boundaries", [])]
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

    def pass_(self, x, choices):
        """Loss at an input, and the output."""
        given = self.inputs if self.k == 0 else {**self.inputs, self.plan.boundaries[self.k - 1]: x}
        z = self.plan.graph.value(self.plan.output if self.last else self.plan.boundaries[self.k], given, choices)
        per_token = self.y.dim() == 2
        logits = z if self.last else head_logits(self.plan.heads[self.k], z, self.head, per_token)
        return cross_entropy(logits, self.y), z

    def step(self, mode, x, e, choices):
        """Gradients of the weights, output and the output's gradient."""
        names, weights = list(self.weights), list(self.weights.values())
        x = x.requires_grad_() if x is not None else None
        loss, z = self.pass_(x, choices)
        reconciled = mode != "off" and self.k > 0
        more = ([] if self.last else [z]) + ([x] if reconciled else [])
        # A weight before the first boundary's own uses may be unused where a value is known without it.
        grads = torch.autograd.grad(loss, weights + more, create_graph=reconciled and mode == "exact", allow_unused=True)
        own, rest = list(grads[: len(weights)]), list(grads[len(weights) :])
        output_gradient = None if self.last else rest.pop(0).detach()
        if reconciled:
            g = rest.pop()
            if mode == "exact":
                own = torch.autograd.grad(loss + LAMBDA * distance(g, e), weights, allow_unused=True)
            else:
                g = g.detach().requires_grad_()
                (v,) = torch.autograd.grad(distance(g, e), g)
                t = STEP * torch.linalg.vector_norm(x.detach()) / torch.linalg.vector_norm(v)
                moved = (x + t * v).detach()
                there = torch.autograd.grad(self.pass_(moved, choices)[0], weights, allow_unused=True)
                own = [None if a is None else a + LAMBDA / t * (b - a) for a, b in zip(own, there)]
        found = {n: torch.zeros_like(w) if g is None else g.detach() for n, w, g in zip(names, weights, own)}
        return found, z.detach(), output_gradient


def gradients(folder, mode, inputs, y, real=torch.float64, moved=None, seen=None):
    """Of every weight by name, module by module; `moved` and `seen` are those of torch_onnx.Choices."""
    plan = Plan(folder, real)
    inputs = {n: torch.from_numpy(v) for n, v in inputs.items()}
    inputs = {n: v.to(real) if v.is_floating_point() else v for n, v in inputs.items()}
    y, x, e, out = torch.from_numpy(y).long(), None, None, []
    for k in range(len(plan.heads)):
        found, x, e = Module(plan, k, inputs, y).step(mode, x, e, Choices(moved, seen))
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
