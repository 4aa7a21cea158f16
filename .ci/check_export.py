#!/usr/bin/env python3
"""Are exported models what they claim to be? onnx.checker and onnxruntime against `slrc eval`, for every small model.

    pip install onnx onnxruntime numpy
    cargo build --release && python3 .ci/check_export.py [--slrc target/release/slrc] [--steps 40]

Partitions, trains some steps, evaluates with --save-logits, exports; then checks the exported file, runs it in
onnxruntime on the same samples, and prints a Markdown table. Fails if an error exceeds LIMIT relative to the largest
logit. With random data: whether the network learns is not the question here.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy
import onnx
import onnxruntime

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIMIT = 1e-4
# Model, options of its partition; a fixed batch of 16 in training, 50 samples in evaluation.
CASES = [
    ("mnist_cnn", "--modules 3"),
    ("mnist_cnn", "--modules 4 --reconcile exact --distance squared --optimizer adamw"),
    ("mnist_deep8", "--per-layer --reconcile bp-free"),
    ("mnist_mlp", "--modules 2"),
    ("mnist_vit", "--modules 3 --lr 0.01"),
    ("mnist_vit", "--modules 1 --optimizer adamw --init random"),
    ("tokens_bert", "--modules 3 --lr 0.01"),
    ("tokens_bert", "--modules 2 --optimizer adamw --reconcile exact"),
]


def samples(model, count, seed):
    random = numpy.random.default_rng(seed)
    if model == "tokens_bert":
        length = random.integers(4, 17, (count, 1))
        return {
            "input_ids": random.integers(0, 64, (count, 16)),
            "attention_mask": (numpy.arange(16) < length).astype(numpy.int64),
            "y": random.integers(0, 4, count),
        }
    return {
        "input": random.standard_normal((count, 1, 28, 28)).astype(numpy.float32),
        "y": random.integers(0, 10, count),
    }


def check(slrc, model, options, steps, folder):
    """Largest |slrc - onnxruntime| relative to the largest logit, and how far training moved the logits likewise."""
    source = ROOT / "models" / model / "model.onnx"
    train, test = samples(model, 64, 1), samples(model, 50, 2)
    numpy.savez(folder / "train.npz", **train)
    numpy.savez(folder / "test.npz", **test)

    def run(*words):
        subprocess.run([slrc, *words], cwd=folder, check=True, stdout=subprocess.DEVNULL)

    run("partition", source, "--batch", "16", *options.split(), "-o", "plan")
    run("train", "plan", "--data", "train.npz", "--steps", str(steps), "-o", "run")
    run("eval", "run", "--data", "test.npz", "--save-logits", "logits.npz")
    run("export", "run", "-o", "out.onnx")
    onnx.checker.check_model(folder / "out.onnx", full_check=True)
    before, after = onnx.load(source), onnx.load(folder / "out.onnx")
    for part in ("input", "output"):
        assert list(getattr(before.graph, part)) == list(getattr(after.graph, part)), f"{part}s differ"
    assert len(before.graph.node) == len(after.graph.node), "nodes differ"
    ours = numpy.load(folder / "logits.npz")["logits"].astype(numpy.float64)
    feeds = {name: values for name, values in test.items() if name != "y"}
    of = lambda path: onnxruntime.InferenceSession(str(path)).run(None, feeds)[0].astype(numpy.float64)
    theirs, untrained = of(folder / "out.onnx"), of(source)
    scale = numpy.abs(theirs).max()
    return numpy.abs(ours - theirs).max() / scale, numpy.abs(theirs - untrained).max() / scale


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slrc", default=ROOT / "target/release/slrc", type=pathlib.Path)
    parser.add_argument("--steps", default=40, type=int)
    args = parser.parse_args()
    print("| model | partition | largest relative error | moved by training |")
    print("|---|---|---|---|")
    worst = 0.0
    for model, options in CASES:
        with tempfile.TemporaryDirectory() as folder:
            error, moved = check(args.slrc.resolve(), model, options, args.steps, pathlib.Path(folder))
        print(f"| {model} | `{options}` | {error:.1e} | {moved:.1e} |", flush=True)
        assert moved > 100 * LIMIT, "training changed next to nothing: the comparison says nothing"
        worst = max(worst, error)
    if not worst <= LIMIT:
        sys.exit(f"the largest error, {worst:.1e}, exceeds {LIMIT:.0e}")
    print(f"\nevery file passes onnx.checker; onnxruntime {onnxruntime.__version__} agrees within {LIMIT:.0e}")


if __name__ == "__main__":
    main()
