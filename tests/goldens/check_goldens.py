#!/usr/bin/env python3
"""Proves the goldens by other routes than the one that made them; fails loudly, prints what it measured.

Run after make_goldens.py. Each `check_*` is independent of the others; the docstring says what it shows.
Needs onnxruntime besides what make_goldens.py needs.
"""

import copy
import re
import sys
import zipfile
from pathlib import Path

import make_goldens as mg
import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from safetensors.numpy import load_file


def close(what, error, bound):
    print(f"  {what}: {error:.1e} (bound {bound:.0e})")
    assert error <= bound, f"{what}: {error} > {bound}"


def relative_error(a, b):
    """|a - b| / |b| over whole tensors or lists of tensors."""
    a, b = (torch.cat([t.reshape(-1) for t in v]) if isinstance(v, (list, tuple)) else v for v in (a, b))
    return ((a - b).norm() / b.norm()).item()


def inputs_of(case, k):
    """(part k, all x_{k-1}, all e_{k-1}) of the first step, k counted from 1."""
    net, heads, x = case.copy()
    parts, x, e = mg.make_parts(net, heads, whole=False), [x], None
    for part in parts[: k - 1]:
        loss, x_out, _ = mg.local_loss(part, x, case.y)
        e = mg.output_gradients(loss, x_out, x, e)
        x = [x.detach() for x in x_out]
    return parts[k - 1], x, e


def loss_and_g(part, x, e, y, create_graph):
    """(L, tensors used, g, e of these)."""
    x = [x.detach().requires_grad_() for x in x]
    loss, _, _ = mg.local_loss(part, x, y)
    used, g, e, _ = mg.compared(loss, x, e, create_graph)
    return loss, x, used, g, e


def moved(x, used, step):
    """x with the tensors used moved by parts of `step`."""
    there = {id(u): u.detach() + s for u, s in zip(used, mg.apart(step, used))}
    return [there.get(id(x), x) for x in x]


def check_exact_by_differences(case):
    """d(L + lambda D)/d theta along random directions, central differences of the value, every distance and module."""
    generator = torch.Generator().manual_seed(7)
    for k in range(2, len(case.heads) + 2):
        for name, distance in mg.DISTANCES.items():
            part, x, e = inputs_of(case, k)
            parameters = list(part.parameters.values())
            lambda_ = case.lambdas[name]

            def objective():
                loss, _, _, g, of_used = loss_and_g(part, x, e, case.y, create_graph=True)
                return loss + lambda_ * distance(g, of_used), lambda_ * distance(g, of_used)

            total, penalty = objective()
            analytic = torch.autograd.grad(total, parameters, retain_graph=True)
            of_penalty = torch.autograd.grad(penalty, parameters)
            worst, h = [0.0, 0.0], 1e-6
            for _ in range(4):
                direction = [torch.randn(p.shape, generator=generator) for p in parameters]
                values = []
                for sign in (1, -2, 1):  # to +h, to -h, back to 0
                    for p, d in zip(parameters, direction):
                        p.data.add_(d, alpha=sign * h)
                    values.append([v.item() for v in objective()])
                for i, gradient in enumerate((analytic, of_penalty)):
                    numeric = (values[0][i] - values[1][i]) / (2 * h)
                    expected = sum((a * d).sum() for a, d in zip(gradient, direction)).item()
                    norm = sum((a**2).sum() for a in gradient).sqrt().item()
                    worst[i] = max(worst[i], abs(numeric - expected) / norm)
            close(f"module {k} {name}: d(L + lambda D)", worst[0], 1e-6)
            close(f"module {k} {name}: d(lambda D) alone", worst[1], 1e-6)


def check_exact_by_tangent(case):
    """grad D = d/dt grad L(x + t v) with v = dD/dg written by hand: the identity, without double backward."""
    for k in range(2, len(case.heads) + 2):
        part, x, e = inputs_of(case, k)
        parameters = list(part.parameters.values())
        loss, x, used, g, e = loss_and_g(part, x, e, case.y, create_graph=True)
        d, batch, norm_g, norm_e = g.detach() - e, len(g), g.detach().norm(), e.norm()
        g0, both = g.detach(), g.detach().norm() ** 2 + e.norm() ** 2
        by_hand = {
            "squared": 2 * batch * d,
            "relative": 2 * d / both - 2 * (d**2).sum() * g0 / both**2,
            "cosine": -(e / (norm_g * norm_e) - (g0 * e).sum() * g0 / (norm_g**3 * norm_e)),
        }
        for name, v in by_hand.items():
            exact = torch.autograd.grad(mg.DISTANCES[name](g, e), parameters, retain_graph=True)
            t, sides = 1e-7 * mg.together(used).detach().norm() / v.norm(), []
            for sign in (1, -1):
                moved_loss, _, _ = mg.local_loss(part, moved(x, used, sign * t * v), case.y)
                sides.append(torch.autograd.grad(moved_loss, parameters))
            tangent = [(a - b) / (2 * t) for a, b in zip(*sides)]
            close(f"module {k} {name}: tangent identity", relative_error(tangent, exact), 1e-6)


def check_fd_surrogate(case, arrays, names):
    """fd_free_cosine is autodiff of its surrogate L(x) + (lambda/t) [L(x + t v) - L(x)], v by autograd of 1 - cos."""
    if "fd_free_cosine" not in case.methods:
        return
    part, x, e = inputs_of(case, 2)
    _, x, used, g, e = loss_and_g(part, x, e, case.y, create_graph=False)
    v = -(e / (g.norm() * e.norm()) - (g * e).sum() * g / (g.norm() ** 3 * e.norm()))
    t = mg.FD_FREE_STEP * mg.together(used).detach().norm() / v.norm()
    at_x, at_moved = (mg.local_loss(part, point, case.y)[0] for point in (x, moved(x, used, t * v)))
    surrogate = at_x + case.lambdas["cosine"] / t * (at_moved - at_x)
    expected = dict(zip(part.parameters, torch.autograd.grad(surrogate, list(part.parameters.values()))))
    golden, exact = (
        [torch.from_numpy(arrays[f"{m}/grad1/{names.get(n, n)}"]) for n in expected]
        for m in ("fd_free_cosine", "exact_cosine")
    )
    expected = [v.T if n in names else v for n, v in expected.items()]
    close("surrogate", relative_error(golden, expected), 1e-12)
    print(f"  for information, fd_free against exact, whole gradient: {relative_error(golden, exact):.1e}")


def check_onnx(case, arrays):
    """onnxruntime equals torch in eval mode at two batch sizes, before and after training; names and shapes fit."""
    path = mg.HERE / f"{case.name}.onnx"
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    net, _, x = case.copy(torch.float32)
    for batch in (x, x[:3]):
        with torch.no_grad():
            expected = net.eval()(batch)
        (got,) = session.run(["logits"], {"input": batch.numpy()})
        close(f"onnxruntime, batch {len(batch)}", np.abs(got - expected.numpy()).max(), 1e-5)
    model = onnx.load(path)
    initializers = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    trained = {n.split("/", 2)[2] for n in arrays if "/param5/" in n}
    floats = {n for n, a in initializers.items() if a.dtype.kind == "f"}
    difference = {n for n in trained if not n.startswith("head.")} ^ floats
    assert not difference, f"golden names and initializers differ: {sorted(difference)}"
    for name in trained:
        expected_shape = initializers[name].shape if name in initializers else arrays[f"init/{name}"].shape
        assert arrays[f"local/param5/{name}"].shape == expected_shape, name
    values = [a.tobytes() for a in initializers.values()]
    assert len(set(values)) == len(values), "two equal initializers"
    heads = load_file(mg.HERE / f"{case.name}.heads.safetensors")
    assert set(heads) == {n[5:] for n in arrays if n.startswith("init/")}
    assert all(np.array_equal(a.astype(np.float64), arrays[f"init/{n}"]) for n, a in heads.items())
    # The eval-mode logits after training: the trained weights put into the ONNX file and run there.
    for initializer in model.graph.initializer:
        golden = arrays.get(f"exact_cosine/param5/{initializer.name}")
        if golden is not None:
            initializer.CopyFrom(numpy_helper.from_array(golden.astype(np.float32), initializer.name))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(["logits"], {"input": x.numpy()})
    close("onnxruntime with trained weights against eval/logits", np.abs(got - arrays["eval/logits"]).max(), 1e-5)


def check_isolation(case):
    """Other weights from module k+1 on leave every update of modules 1..k bit-identical, all steps."""
    for method in [m for m in case.methods if m != "bp"]:
        base, base_states, _ = mg.run_method(case, method)
        for k in range(1, len(case.heads) + 1):
            changed = copy.deepcopy(case)
            parts = mg.make_parts(changed.net, changed.heads, whole=False)
            for part in parts[k:]:
                for p in part.parameters.values():
                    p.data.mul_(1.7)
            records, states, _ = mg.run_method(changed, method)
            early = [n for part in parts[:k] for n in part.parameters]
            late = [n for part in parts[k:] for n in part.parameters]
            for a, b in zip(base_states, states):
                assert all(torch.equal(a[n], b[n]) for n in early), f"{method}: module <= {k} moved"
                assert not any(torch.equal(a[n], b[n]) for n in late)
            assert all(a.loss[:k] == b.loss[:k] for a, b in zip(base, records))
    print("  isolation: bit-identical")


def check_first_pass_by_one_graph(case, arrays):
    """x_k, e_k, g_k and running statistics from one uncut forward pass: no detach and no step order involved. At a
    boundary every tensor is copied, so that what uses it before and behind can be told apart."""
    net, heads, x = case.copy()
    parts = mg.make_parts(net, heads, whole=False)
    ins, outs, losses = [[x.requires_grad_()]], [], []
    for part in parts:
        loss, x_out, _ = mg.local_loss(part, ins[-1], case.y)
        outs.append(x_out)
        ins.append([x.clone() for x in x_out])
        losses.append(loss)
    came = {}
    for k in range(1, len(parts)):
        discord = 0.0
        for i, (before, behind) in enumerate(zip(outs[k - 1], ins[k])):
            e = came.get(id(before))
            if e is None:
                (e,) = torch.autograd.grad(losses[k - 1], before, retain_graph=True)
            came[id(behind)] = e
            (g,) = torch.autograd.grad(losses[k], behind, retain_graph=True, allow_unused=True)
            tensor = f".{i}" if i else ""
            for name, value in ((f"x{k}{tensor}", before), (f"e{k}{tensor}", e), (f"g{k + 1}{tensor}", g)):
                if value is None:
                    assert f"boundary1/{name}" not in arrays, name
                    continue
                golden = torch.from_numpy(arrays[f"boundary1/{name}"])
                close(f"boundary1/{name}", relative_error(value.detach(), golden), 1e-13)
            if g is not None:
                discord += (len(x) * ((g - e) ** 2).sum()).item()
        close(f"discord {k}", abs(discord / arrays["local/discord"][0, k - 1] - 1), 1e-12)
    for name, value in net.named_buffers():
        if "running" in name:
            assert relative_error(value, torch.from_numpy(arrays[f"local/param1/{name}"])) < 1e-13, name


def check_batchnorm_by_hand():
    """Biased variance normalises; running statistics take the unbiased one with torch momentum 0.1; eps 1e-5."""
    case = mg.make_case("convnet")
    net, _, x = case.copy()
    start = {n: b.clone() for n, b in net.named_buffers()}
    z = net.stem.conv(x)
    mean, biased = z.mean((0, 2, 3)), z.var((0, 2, 3), unbiased=False)
    count = z.numel() / z.shape[1]
    bn = net.stem.bn
    mean_, std_, weight_, bias_ = (v[:, None, None] for v in (mean, (biased + 1e-5).sqrt(), bn.weight, bn.bias))
    by_hand = (z - mean_) / std_ * weight_ + bias_
    close("batchnorm output", relative_error(by_hand, bn(z)), 1e-13)
    running_mean = 0.9 * start["stem.bn.running_mean"] + 0.1 * mean
    running_var = 0.9 * start["stem.bn.running_var"] + 0.1 * biased * count / (count - 1)
    close("running mean", relative_error(running_mean, bn.running_mean), 1e-13)
    close("running variance", relative_error(running_var, bn.running_var), 1e-13)


def check_optimizers_by_hand(case):
    """The three optimizers as formulas, fed with the recorded gradients."""
    decay, mu, lr = {"local": 0.0, "local_sgd_nesterov": 5e-4}, 0.9, 0.05
    for method in ("local", "local_sgd_nesterov", "local_adamw"):
        if method not in case.methods:
            continue
        records, states, _ = mg.run_method(case, method)
        net, heads, _ = case.copy()
        parts = mg.make_parts(net, heads, whole=False)
        values = {n: p.detach().clone() for part in parts for n, p in part.parameters.items()}
        m = {n: torch.zeros_like(p) for n, p in values.items()}
        s = {n: torch.zeros_like(p) for n, p in values.items()}
        for step, record in enumerate(records, 1):
            for n, p in values.items():
                grad = record.grad[n]
                if method == "local_adamw":
                    p.mul_(1 - 1e-3 * 0.01)
                    m[n] = 0.9 * m[n] + 0.1 * grad
                    s[n] = 0.999 * s[n] + 0.001 * grad**2
                    p.sub_(1e-3 * (m[n] / (1 - 0.9**step)) / ((s[n] / (1 - 0.999**step)).sqrt() + 1e-8))
                else:
                    grad = grad + decay[method] * p
                    m[n] = mu * m[n] + grad
                    p.sub_(lr * ((grad + mu * m[n]) if "nesterov" in method else m[n]))
        close(f"{method} by hand", max(relative_error(values[n], states[-1][n]) for n in values), 1e-12)


def check_head_by_hand(case, arrays):
    """Head 1 and its loss from the golden x_1 in elementary steps: pool (or norm and mean), linear, cross-entropy."""
    x1, y = torch.from_numpy(arrays["boundary1/x1"]), torch.from_numpy(arrays["y"])
    p = {n: torch.from_numpy(a) for n, a in arrays.items() if n.startswith("init/head.1.")}
    if case.name != "transformer":
        b, c, h, w = x1.shape
        pooled = x1.reshape(b, c, 2, h // 2, 2, w // 2).mean((3, 5)).reshape(b, c * 4)
    else:
        centred = x1 - x1.mean(-1, keepdim=True)
        normed = centred / ((centred**2).mean(-1, keepdim=True) + 1e-5).sqrt()
        pooled = (normed * p["init/head.1.norm.weight"] + p["init/head.1.norm.bias"]).mean(1)
    logits = pooled @ p["init/head.1.linear.weight"].T + p["init/head.1.linear.bias"]
    loss = (torch.logsumexp(logits, 1) - logits[torch.arange(len(y)), y]).mean().item()
    close("head 1 and loss by hand", abs(loss - arrays["local/loss"][0, 0]), 1e-13)


def check_files(case, arrays, names):
    """The files are what the script makes now: plain npy v1, float32-representable starts, no path of a machine."""
    fresh = mg.golden_arrays(case, names)
    assert list(fresh) == list(arrays)
    worst = 0.0
    for name, array in fresh.items():
        scale = np.abs(array).max()
        worst = max(worst, np.abs(array - arrays[name]).max() / max(scale, 1e-6))
    close("remade against committed", worst, 1e-9)
    for name in ["x"] + [n for n in arrays if n.startswith("init/")]:
        assert np.array_equal(arrays[name].astype(np.float32).astype(np.float64), arrays[name]), name
    path = mg.HERE / f"{case.name}.goldens.npz"
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            data = archive.read(info)
            assert data[:8] == b"\x93NUMPY\x01\x00" and b"'fortran_order': False" in data[:128], info.filename
            assert re.search(rb"'descr': '<(f8|i8)'", data[:128]), info.filename
    here = [str(mg.HERE), sys.prefix, str(Path(torch.__file__).parent), "site-" + "packages"]
    for file in sorted(mg.HERE.glob("*.*")):
        content = file.read_bytes()
        assert not any(path.encode() in content for path in here), f"{file.name} holds a path of this machine"
        print(f"  {file.name}: {len(content)} bytes")


def report_float32(case, names, arrays):
    """The same training in float32: what a right float32 implementation may differ by, the guide for tolerances."""
    shadow = mg.golden_arrays(case, names, torch.float32)
    for method in case.methods:
        rows = {}
        for name, array in arrays.items():
            if not name.startswith(f"{method}/") or name.endswith("/lambda"):
                continue
            kind = name.split("/")[1]
            diff = np.abs(shadow[name] - array).max() if kind in ("cosine", "accuracy") else None
            norm = max(np.linalg.norm(array), 1e-12)
            error = diff if diff is not None else np.linalg.norm(shadow[name] - array) / norm
            if "k.bias" in name and kind == "grad1":
                continue  # exactly zero in theory: softmax does not see it
            rows[kind] = max(rows.get(kind, 0.0), error)
        print(f"  {method:20}" + "".join(f" {k} {v:.0e}" for k, v in rows.items()))
    if "eval/logits" in arrays:
        print(f"  eval/logits {np.abs(shadow['eval/logits'] - arrays['eval/logits']).max():.0e}")


def report_strength(case, arrays, names):
    """How much the penalty is worth in step 1: lambda D against L, and its gradient against L's."""
    for name in mg.DISTANCES:
        method = f"exact_{name}"
        for k in range(2, len(case.heads) + 2):
            part, _, _ = inputs_of(case, k)
            plain, total = (
                np.concatenate([arrays[f"{m}/grad1/{names.get(n, n)}"].ravel() for n in part.parameters])
                for m in ("local", method)
            )
            lambda_, loss = arrays[f"{method}/lambda"][0], arrays[f"{method}/loss"][0, k - 1]
            value = arrays[f"{method}/distance"][0, k - 2]
            print(
                f"  module {k} {name}: lambda {lambda_:g}, lambda D / L = {lambda_ * value / loss:.3f}, "
                f"|lambda grad D| / |grad L| = {np.linalg.norm(total - plain) / np.linalg.norm(plain):.3f}"
            )


def main():
    check_batchnorm_by_hand()
    for name in mg.CASES:
        case = mg.make_case(name)
        with np.load(mg.HERE / f"{name}.goldens.npz") as file:
            arrays = {n: file[n] for n in file.files}
        _, names = mg.export_onnx(case)
        for title, check in {
            "files": lambda: check_files(case, arrays, names),
            "onnx": lambda: check_onnx(case, arrays),
            "first pass": lambda: check_first_pass_by_one_graph(case, arrays),
            "head": lambda: check_head_by_hand(case, arrays),
            "exact, by differences": lambda: check_exact_by_differences(case),
            "exact, by the tangent identity": lambda: check_exact_by_tangent(case),
            "finite difference": lambda: check_fd_surrogate(case, arrays, names),
            "optimizers": lambda: check_optimizers_by_hand(case),
            "isolation": lambda: check_isolation(case),
            "penalty strength, step 1": lambda: report_strength(case, arrays, names),
            "the same in float32 (relative, worst tensor)": lambda: report_float32(case, names, arrays),
        }.items():
            print(f"{name}: {title}")
            check()


if __name__ == "__main__":
    main()
