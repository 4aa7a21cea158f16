#!/usr/bin/env python3
"""Do networks of other people's making import, compute what onnxruntime computes, train, and go back? A table.

    pip install torch torchvision timm transformers onnx onnxruntime onnxscript numpy
    cargo build --release
    .ci/check_models.py [--slrc target/release/slrc] [--exports FOLDER] [--forms | --opsets] [--write] [NAME ..]

Exports the networks of .ci/networks.py (random weights: no downloads) with both of PyTorch's exporters in their
default, evaluating form, into FOLDER, where they stay. Each is then compared with onnxruntime on the same samples,
partitioned into two, four and eight modules, trained five steps of finite differences on one batch of four samples in
two modules (with BatchNorm put back where exporting folded it), exported with that folded again, and the exported file
compared with `slrc eval` in onnxruntime. With --forms the exports are those in training mode and unfolded ones, of small
networks where there are such; they are compared with PyTorch's `eval()`, since in onnxruntime they would drop out and use
the batch's statistics, and trained in four modules. With --opsets small networks are exported in every opset that an
exporter writes (where it fails, with attention in steps), and compared with onnxruntime, or where that fails with
PyTorch. --write puts the rows into the tables of docs/models.md: those of networks that were not asked for stay.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile
import time
import warnings

import networks
import numpy
import onnxruntime

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- table: .ci/check_models.py --write -->", "<!-- end -->"
HEAD = [
    "network", "exporter", "ONNX nodes", "trained", "against onnxruntime", "K = 2", "K = 4", "K = 8", "repaired",
    "loss, 5 steps", "exported, against onnxruntime",
]  # fmt: skip
RATES = ["0.01", "0.001", "0.0001"]
FORMS_BEGIN = "<!-- table: .ci/check_models.py --forms --write -->"
FORMS_HEAD = [
    "network", "export", "ONNX nodes", "trained", "against PyTorch's eval()", "K = 4", "loss, 5 steps", "exported"
]  # fmt: skip
OPSETS_BEGIN = "<!-- table: .ci/check_models.py --opsets --write -->"
OPSETS_HEAD = ["network", "exporter", "opsets", "ONNX nodes", "worst, against onnxruntime", "not exported"]
OPSETS = {"torchscript": range(9, 21), "dynamo": range(18, 26)}
# Modules of networks that cannot be cut into four.
MODULES_OF_FORMS = {"mlp": 2}
# Left out of --forms unless named: another of their kind is smaller.
NOT_OF_FORMS = ["resnet50", "vit_b_16", "bert_mlm", "gpt2_no_mask"]
OF_FORMS = [name for name in networks.NETWORKS if name not in NOT_OF_FORMS]


# Those with --opsets unless told otherwise.
OF_OPSETS = [
    "mlp", "resnet18", "mobilenet_v2", "efficientnet_b0", "squeezenet1_1", "convnext_tiny", "swin_t",
    "vit_small_patch16_224", "unet", "bert", "gpt2",
]  # fmt: skip


def infer(path, inputs):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options)
    return session.run(None, {i.name: inputs[i.name] for i in session.get_inputs()})[0]


def error(ours, theirs):
    return float(numpy.abs(ours - theirs).max() / numpy.abs(theirs).max())


def runner(slrc, folder):
    """Runs slrc in a folder; what it says is wrong becomes an exception."""

    def run(*words):
        ran = subprocess.run([slrc, *words], cwd=folder, capture_output=True, text=True)
        if ran.returncode:
            first = next((l for l in ran.stderr.splitlines() if l.startswith("error")), ran.stderr)
            raise RuntimeError(f"{words[0]}: {first[:120]}")
        return ran.stdout

    return run


def partition_repaired(run, path, *words):
    """With BatchNorm put back where slrc finds that it was folded; whether it did."""
    try:
        run("partition", str(path), "--rebn", *words)
        return True
    except RuntimeError:
        run("partition", str(path), *words)
        return False


def train(run, path, folder, modules="2"):
    """Five steps with the largest of some learning rates by which the loss falls, or else the smallest."""
    for rate in RATES:
        repaired = partition_repaired(run, path, "--modules", modules, "--lr", rate, "-o", f"plan{rate}")
        run("train", f"plan{rate}", "--data", "data.npz", "--steps", "5", "--log-every", "1", "-o", f"run{rate}")
        lines = (folder / f"run{rate}" / "metrics.jsonl").read_text().splitlines()
        losses = [json.loads(line)["modules"][-1]["loss"] for line in lines]
        if losses[-1] < losses[0]:
            break
    return f"run{rate}", repaired, f"{losses[0]:.2f} -> {losses[-1]:.2f}, lr {rate}"


class Checked:
    """A file, with samples and what is expected of them before it is trained."""

    def __init__(self, run, name, path, folder, x, theirs):
        self.run, self.folder, self.x, self.theirs = run, folder, x, theirs
        numpy.savez(folder / "data.npz", y=networks.labels(name, x, theirs.shape, numpy.random.default_rng(1)), **x)
        report = json.loads(run("check", str(path), "--json"))
        run("partition", str(path), "--modules", "1", "-o", "plain")
        run("train", "plain", "--data", "data.npz", "--steps", "0", "-o", "untouched")
        difference = error(self.evaluate("untouched"), theirs)
        self.cells = [
            f"{report['nodes']}", f"{report['network']['trained']['numbers'] / 1e6:.1f} M", f"{difference:.0e}"
        ]  # fmt: skip

    def evaluate(self, run_folder):
        self.run("eval", run_folder, "--data", "data.npz", "--save-logits", "logits.npz")
        with numpy.load(self.folder / "logits.npz") as file:
            return file[file.files[0]].reshape(self.theirs.shape)

    def exported(self, trained, repaired):
        """How far the trained file in onnxruntime is from `slrc eval`."""
        self.run("export", trained, *(["--fold"] if repaired else []), "-o", "back.onnx")
        return f"{error(self.evaluate(trained), infer(str(self.folder / 'back.onnx'), self.x)):.0e}"


def check_form(run, name, exporter, path, folder):
    """The cells of an export in another form, after network and export."""
    small = networks.may_be_small(name, exporter)
    x = networks.sample(name, small)
    checked = Checked(run, name, path, folder, x, networks.evaluated(name, str(path), x, small))
    cells = checked.cells
    modules = MODULES_OF_FORMS.get(name, 4)
    run("partition", str(path), "--modules", str(modules), "-o", "planned")
    plan = json.loads(run("plan", "show", "planned", "--json"))
    cells.append(f"{plan['totals']['peak_bytes'] / 2**20:.0f} MiB" + (f", K = {modules}" if modules != 4 else ""))
    trained, repaired, losses = train(run, path, folder, str(modules))
    return [*cells, losses, checked.exported(trained, repaired)]


def check(run, name, path, folder):
    """The cells of one file, after network and exporter."""
    x = networks.sample(name)
    checked = Checked(run, name, path, folder, x, infer(str(path), x))
    cells = checked.cells
    for modules in (2, 4, 8):
        start = time.time()
        try:
            run("partition", str(path), "--modules", str(modules), "-o", f"modules{modules}")
        except RuntimeError as e:
            cells.append("fewer cuts" if "cut" in str(e) else str(e))
            continue
        seconds = time.time() - start
        plan = json.loads(run("plan", "show", f"modules{modules}", "--json"))
        cells.append(f"{plan['totals']['peak_bytes'] / 2**20:.0f} MiB, {seconds:.1f} s")
    trained, repaired, losses = train(run, path, folder)
    return [*cells, "BatchNorm back" if repaired else "", losses, checked.exported(trained, repaired)]


def spans(numbers):
    """`9 to 12, 14` of sorted numbers."""
    parts = []
    for n in numbers:
        if parts and parts[-1][1] == n - 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return ", ".join(f"{a} to {b}" if b > a else f"{a}" for a, b in parts)


def check_opsets(slrc, name, exporter):
    """The cells of a network in every opset of an exporter."""
    small = networks.may_be_small(name, exporter)
    x = networks.sample(name, small)
    taken, in_steps, refused, nodes, worst = [], [], [], [], 0.0
    for opset in OPSETS[exporter]:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model.onnx"
            try:
                networks.export(name, exporter, str(path), small, opset=opset)
            except Exception:  # Every exporter has exceptions of its own.
                try:
                    networks.export(name, exporter, str(path), small, opset=opset, in_steps=True)
                    in_steps.append(opset)
                except Exception:
                    refused.append(opset)
                    continue
            try:
                theirs = infer(str(path), x)
            except Exception:
                theirs = networks.evaluated(name, str(path), x, small)
            cells = Checked(runner(slrc, folder), name, path, pathlib.Path(folder), x, theirs).cells
            taken.append(opset)
            nodes.append(int(cells[0]))
            worst = max(worst, float(cells[2]))
    opsets = spans(taken) + (f" ({spans(in_steps)} in steps)" if in_steps else "")
    return [opsets, " to ".join(map(str, sorted({min(nodes), max(nodes)}))), f"{worst:.0e}", spans(refused)]


def write(page, begin, head, rows, names, exporters=networks.EXPORTERS):
    """Replaces rows of the table after `begin`; each begins with its network's name and its exporter's."""
    before, rest = page.read_text().split(begin)
    table, after = rest.split(END, 1)
    key = lambda row: tuple(cell.strip() for cell in row.split("|")[1:3])
    replaced = set(map(key, rows))
    kept = [line for line in table.splitlines() if line.startswith("|")]
    kept = [line for line in kept if key(line)[0] in names and key(line) not in replaced]
    order = [(name, exporter) for name in names for exporter in exporters]
    rows = sorted(rows + kept, key=lambda row: order.index(key(row)))
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *rows]
    page.write_text(before + begin + "\n" + "\n".join(lines) + "\n" + END + after)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--slrc", default=ROOT / "target" / "release" / "slrc")
    parser.add_argument("--exports", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()) / "slrc-exports")
    parser.add_argument("--forms", action="store_true")
    parser.add_argument("--opsets", action="store_true")
    parser.add_argument("--write", action="store_true")
    a = parser.parse_args()
    warnings.filterwarnings("ignore")
    a.exports.mkdir(parents=True, exist_ok=True)
    slrc = str(pathlib.Path(a.slrc).resolve())
    if a.opsets:
        for name in a.names or OF_OPSETS:
            for exporter in OPSETS:
                try:
                    cells = check_opsets(slrc, name, exporter)
                except RuntimeError as e:
                    cells = [" ".join(str(e).replace("|", "/").split())[:160]]
                rows = [f"| {name} | {exporter} | " + " | ".join(cells) + " |"]
                print(rows[0], flush=True)
                if a.write:
                    write(PAGE, OPSETS_BEGIN, OPSETS_HEAD, rows, networks.NETWORKS)
        return
    # What is exported, by the name that it has in the table: exporter and form.
    exports = {f"{exporter}, {form}": (exporter, form) for exporter, form in networks.FORMS}
    if not a.forms:
        exports = {exporter: (exporter, None) for exporter in networks.EXPORTERS}
    for name in a.names or (OF_FORMS if a.forms else networks.NETWORKS):
        rows = []
        for label, (exporter, form) in exports.items():
            path = (a.exports / f"{name}.{exporter}.{form or f'b{networks.BATCH}'}.onnx").resolve()
            with tempfile.TemporaryDirectory() as folder:
                try:
                    if not path.exists():
                        small = a.forms and networks.may_be_small(name, exporter)
                        networks.export(name, exporter, str(path), small, form)
                    run = runner(slrc, folder)
                    if form:
                        cells = check_form(run, name, exporter, path, pathlib.Path(folder))
                    else:
                        cells = check(run, name, path, pathlib.Path(folder))
                except RuntimeError as e:
                    path.unlink(missing_ok=True)
                    cells = [" ".join(str(e).replace("|", "/").split())[:160]]
            rows.append(f"| {name} | {label} | " + " | ".join(cells) + " |")
            print(rows[-1], flush=True)
        if a.write and a.forms:
            write(PAGE, FORMS_BEGIN, FORMS_HEAD, rows, networks.NETWORKS, list(exports))
        elif a.write:
            write(PAGE, BEGIN, HEAD, rows, networks.NETWORKS)


if __name__ == "__main__":
    main()
