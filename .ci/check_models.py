#!/usr/bin/env python3
"""Do networks of other people's making import, compute what onnxruntime computes, train, and go back? A table.

    pip install torch torchvision onnx onnxruntime onnxscript numpy
    cargo build --release && .ci/check_models.py [--slrc target/release/slrc] [--exports FOLDER] [--write] [NAME ..]

Exports torchvision's networks (random weights: no downloads) with both of PyTorch's exporters in their default,
evaluating form, into FOLDER, where they stay. Each is then compared with onnxruntime on the same images, partitioned
into two, four and eight modules, trained five steps of finite differences on one batch of four images in two modules
(with BatchNorm put back where exporting folded it), exported with that folded again, and the exported file compared
with `slrc eval` in onnxruntime. --write puts the table into docs/models.md.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile
import time
import warnings

import numpy
import onnxruntime

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- table: .ci/check_models.py --write -->", "<!-- end -->"
NAMES = [
    "resnet18", "vgg11_bn", "mobilenet_v2", "mnasnet1_0", "efficientnet_b0", "regnet_y_400mf", "shufflenet_v2_x1_0",
    "squeezenet1_1", "googlenet", "densenet121", "convnext_tiny", "vit_b_16", "swin_t",
]
EXPORTERS = ["torchscript", "dynamo"]
BATCH = 4


def export(name, exporter, path):
    import torch
    import torchvision

    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None).eval()
    x = torch.randn(BATCH, 3, 224, 224)
    if exporter == "dynamo":
        torch.onnx.export(model, (x,), path, dynamo=True, verbose=False, external_data=False)
    else:
        torch.onnx.export(model, (x,), path, dynamo=False)


def infer(path, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options)
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def error(ours, theirs):
    return float(numpy.abs(ours - theirs).max() / numpy.abs(theirs).max())


def check(slrc, path, folder):
    """The cells of one file, after network and exporter."""

    def run(*words):
        ran = subprocess.run([slrc, *words], cwd=folder, capture_output=True, text=True)
        if ran.returncode:
            first = next((l for l in ran.stderr.splitlines() if l.startswith("error")), ran.stderr)
            raise RuntimeError(f"{words[0]}: {first[:120]}")
        return ran.stdout

    def evaluate(run_folder):
        run("eval", run_folder, "--data", "data.npz", "--save-logits", "logits.npz")
        with numpy.load(folder / "logits.npz") as file:
            return file[file.files[0]]

    report = json.loads(run("check", str(path), "--json"))
    random = numpy.random.default_rng(1)
    x = random.standard_normal((BATCH, 3, 224, 224)).astype(numpy.float32)
    numpy.savez(folder / "data.npz", x=x, y=random.integers(0, 1000, BATCH))
    cells = [f"{report['nodes']}", f"{report['network']['trained']['numbers'] / 1e6:.1f} M"]

    run("partition", str(path), "--modules", "2", "-o", "plain")
    run("train", "plain", "--data", "data.npz", "--steps", "0", "-o", "untouched")
    cells.append(f"{error(evaluate('untouched'), infer(str(path), x)):.0e}")
    for modules in (2, 4, 8):
        start = time.time()
        try:
            run("partition", str(path), "--modules", str(modules), "-o", f"plan{modules}")
        except RuntimeError as e:
            cells.append("fewer cuts" if "cut" in str(e) else str(e))
            continue
        seconds = time.time() - start
        plan = json.loads(run("plan", "show", f"plan{modules}", "--json"))
        cells.append(f"{plan['totals']['peak_bytes'] / 2**20:.0f} MiB, {seconds:.1f} s")
    try:
        run("partition", str(path), "--modules", "2", "--rebn", "--lr", "0.01", "-o", "plan")
        repaired = True
    except RuntimeError:
        run("partition", str(path), "--modules", "2", "--lr", "0.001", "-o", "plan")
        repaired = False
    cells.append("BatchNorm back" if repaired else "")
    run("train", "plan", "--data", "data.npz", "--steps", "5", "--log-every", "1", "-o", "run")
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["modules"][-1]["loss"] for line in lines]
    cells.append(f"{losses[0]:.2f} -> {losses[-1]:.2f}")
    run("export", "run", *(["--fold"] if repaired else []), "-o", "back.onnx")
    cells.append(f"{error(evaluate('run'), infer(str(folder / 'back.onnx'), x)):.0e}")
    return cells


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--slrc", default=ROOT / "target" / "release" / "slrc")
    parser.add_argument("--exports", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()) / "slrc-exports")
    parser.add_argument("--write", action="store_true")
    a = parser.parse_args()
    warnings.filterwarnings("ignore")
    a.exports.mkdir(parents=True, exist_ok=True)
    slrc = str(pathlib.Path(a.slrc).resolve())
    head = [
        "network", "exporter", "ONNX nodes", "trained", "against onnxruntime", "K = 2", "K = 4", "K = 8", "repaired",
        "loss, 5 steps", "exported, against onnxruntime",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    print("\n".join(lines), flush=True)
    for name in a.names or NAMES:
        for exporter in EXPORTERS:
            path = a.exports / f"{name}.{exporter}.b{BATCH}.onnx"
            if not path.exists():
                export(name, exporter, str(path))
            with tempfile.TemporaryDirectory() as folder:
                try:
                    cells = check(slrc, path.resolve(), pathlib.Path(folder))
                except RuntimeError as e:
                    cells = [str(e).replace("|", "/")]
            lines.append(f"| {name} | {exporter} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    if a.write:
        page = PAGE.read_text()
        before, rest = page.split(BEGIN)
        PAGE.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.split(END)[1])


main()
