"""What the scripts that measure step times share: compiling a plan, `slrc bench`, and tables in docs/performance.md."""

import gzip
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/performance.md"


def slrc(program, *words):
    """Standard output of a command that must succeed."""
    command = [str(program), *map(str, words)]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"{' '.join(command)}\n{ran.stderr}")
    return ran.stdout


def unpacked(export, folder):
    """An export of models/exports as a file in `folder`."""
    model = folder / f"{export}.onnx"
    model.write_bytes(gzip.decompress((ROOT / f"models/exports/{export}.onnx.gz").read_bytes()))
    return model


def partition(program, model, batch, options, plan):
    """Compiles a plan with random weights and SGD with momentum; its folder."""
    common = ["--batch", batch, "--init", "random", "--optimizer", "sgd", "--lr", "0.001"]
    slrc(program, "partition", model, *common, *options.split(), "-o", plan)
    return plan


def bench(program, plan, steps, threads):
    """What `slrc bench` says of a plan."""
    return json.loads(slrc(program, "bench", plan, "--steps", steps, "--threads", threads, "--json"))[0]


def roof(program, plan, threads):
    """The CPU's measured roof, in words."""
    peaks = json.loads(slrc(program, "profile", plan, "--steps", 1, "--threads", threads, "--json"))["roof"]
    return f"roof {peaks['flops_per_second'] / 1e9:.0f} GFLOP/s and {peaks['bytes_per_second'] / 1e9:.0f} GB/s"


def write(script, text, page=PAGE):
    """Puts text between the marks of a script in a page."""
    begin_mark, end_mark = f"<!-- table: .ci/{script} --write -->", f"<!-- end of table: {script} -->"
    old = page.read_text()
    begin, end = old.index(begin_mark), old.index(end_mark)
    page.write_text(f"{old[:begin]}{begin_mark}\n{text}\n{old[end:]}")
