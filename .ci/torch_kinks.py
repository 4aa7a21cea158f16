"""Which choices explain how far a step's gradients in f32 are from those in f64?

A ReLU, a clip or a max-pool has a kink, and an operand that is nearer to it than f32 rounds may be on its other side in
f32. `explain` lists such operands, in f64: those at most so many times as far from their kink as PyTorch's own f32
operands of that node are from f64's (root of the mean square), twice as far in each round, as long as something is left.
Moving one over its kink, by twice the distance, changes the gradients by a known difference; the gradients that are to
be explained are fitted by a sum of such differences (least squares), and the operands whose coefficient is nearer to
one than to zero are moved, all at once; as soon as those tried so far explain all, no others are tried. Operands that
explained another step of the same network are tried first. What is left then is what rounding did apart from choices,
or an error: a few operands moved or not cannot imitate one in thousands of numbers.
"""

import torch
import torch_step

# Numbers of a tensor that are fitted.
SAMPLE = 4096
# How near to its kink an operand is that may be moved, round by round: in roundings of its node.
ROUNDS = [2.0, 4.0, 8.0]
# Operands that are tried in a round, the nearest.
MOST = 300


def candidates(double, single):
    """Operands near a kink: how near, node, place and distance; nearest first."""
    found = []
    for node, (x, away) in double.items():
        if not x.is_floating_point() or node not in single:
            continue
        rounding = float((single[node][0].to(x.dtype) - x).square().mean().sqrt())
        near = (away.abs() < ROUNDS[-1] * rounding) & (away != 0)
        for place in near.flatten().nonzero().flatten().tolist():
            by = float(away.flatten()[place])
            found.append((abs(by) / rounding, node, place, by))
    return sorted(found)


def moves(chosen):
    """As torch_onnx.Choices takes them."""
    nodes = {}
    for _, node, place, by in chosen:
        places, distances = nodes.setdefault(node, ([], []))
        places.append(place)
        distances.append(2 * by)
    return {n: (torch.tensor(p), torch.tensor(d, dtype=torch.float64)) for n, (p, d) in nodes.items()}


def sampled(modules, scales):
    """Numbers of all tensors, each relative to its tensor's scale, in one row."""
    row = []
    for name, scale in scales.items():
        g = modules[name].double().flatten()
        if len(g) > SAMPLE:
            g = g[torch.randperm(len(g), generator=torch.Generator().manual_seed(0))[:SAMPLE]]
        row.append((g / scale).float())
    return torch.cat(row)


def flat(modules):
    return {n: g for module in modules for n, g in module.items()}


def scales(modules):
    """What differences are measured against, by tensor: as in torch_step.worst."""
    found = {}
    for module in modules:
        largest = max(float(g.abs().max()) for g in module.values())
        found |= {n: max(float(g.abs().max()), 1e-3 * largest) for n, g in module.items()}
    return found


class Explained:
    """The worst difference that is left, operands that were moved, and how many were near their kinks."""

    def __init__(self, left, moved, near):
        self.left, self.moved, self.near = left, moved, near


def fitted(rows, target):
    """Coefficients of the rows whose sum is nearest to the target, and the largest number that is left of it."""
    rows = torch.stack(rows).double()
    squares = rows @ rows.T
    squares += 1e-9 * squares.diagonal().mean() * torch.eye(len(rows))
    fit = torch.linalg.solve(squares, rows @ target)
    return fit, float((target - fit @ rows).abs().max())


def explain(folder, mode, x, y, ours, enough, worth, guess=None):
    """Gradients `ours`, by name, of the plan in a folder; a difference of `enough` needs no further round. `guess` is what
    explained another step of the network: it is taken if the difference that it leaves is below `worth`, and otherwise
    begun with."""

    def gradients(moved):
        return torch_step.gradients(folder, mode, x, y, moved=moves(moved))

    moved = list(guess.moved) if guess else []
    if moved:
        left = torch_step.worst(gradients(moved), ours)
        if left < worth:
            return Explained(left, moved, guess.near)
    double, single = {}, {}
    base = torch_step.gradients(folder, mode, x, y, seen=double)
    torch_step.gradients(folder, mode, x, y, torch.float32, seen=single)
    near = candidates(double, single)
    double.clear(), single.clear()
    by = scales(base)
    target = sampled(ours, by)
    best = Explained(torch_step.worst(base, ours), [], len(near))
    moved = [one for one in near if one[1:3] in [m[1:3] for m in moved]]
    for nearness in ROUNDS:
        before = sampled(flat(gradients(moved)), by)
        # What moving one more does, or moving one less.
        rows, matter, fit = [], [], []
        wanted = (target - before).double()
        tried = [one for one in near if one[0] < nearness][:MOST]
        for one in tried:
            others = [m for m in moved if m is not one]
            row = sampled(flat(gradients(others if len(others) < len(moved) else [*moved, one])), by) - before
            if float(row.abs().max()) > 1e-6:
                rows.append(row)
                matter.append(one)
                fit, left = fitted(rows, wanted)
                if left < enough:
                    break
        changed = [one for one, f in zip(matter, fit) if f > 0.5]
        moved = [m for m in moved if m not in changed] + [c for c in changed if c not in moved]
        left = torch_step.worst(gradients(moved), ours)
        if left < best.left:
            best = Explained(left, moved, len(tried))
        if left < enough:
            break
    return best
