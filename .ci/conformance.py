#!/usr/bin/env python3
"""The official ONNX node tests, put where compiler/tests/conformance reads them.

    .ci/conformance.py FOLDER
    SLRC_CONFORMANCE=FOLDER cargo test -p slrc-compiler --test conformance -- --ignored

The newest onnx package generates its cases; an older wheel carries those of earlier opsets as files. Both come from PyPI
into an environment of their own in FOLDER; nothing of them is kept in the repository. Every case becomes

    FOLDER/SUITE/CASE/model.onnx, input_0.pb .., output_0.pb ..
"""

import pathlib
import shutil
import subprocess
import sys
import zipfile

NEW = "1.23.2"
OLD = "1.17.0"

# Run by the environment's Python: cases with their first data set.
GENERATE = """
import pathlib, sys, warnings
warnings.filterwarnings("ignore")
import numpy, onnx
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

target = pathlib.Path(sys.argv[1])
for case in collect_testcases(None):
    folder = target / case.name
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(case.model.SerializeToString())
    inputs, outputs = case.data_sets[0]
    for kind, values, infos in (("input", inputs, case.model.graph.input), ("output", outputs, case.model.graph.output)):
        for i, (value, info) in enumerate(zip(values, infos)):
            if isinstance(value, onnx.TensorProto):
                tensor = value
            elif isinstance(value, (numpy.ndarray, numpy.generic)) and info.type.HasField("tensor_type"):
                tensor = numpy_helper.from_array(numpy.asarray(value), info.name)
            else:
                continue  # Sequences and optionals: the model says so itself.
            (folder / f"{kind}_{i}.pb").write_bytes(tensor.SerializeToString())
"""


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    root = pathlib.Path(sys.argv[1])
    new, old = root / NEW, root / OLD
    if new.is_dir() and old.is_dir():
        print(f"{root} is there already")
        return
    root.mkdir(parents=True, exist_ok=True)
    env = root / "env"
    if not env.is_dir():
        subprocess.run([sys.executable, "-m", "venv", env], check=True)
    pip = [env / "bin" / "python", "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", f"onnx=={NEW}"], check=True)
    shutil.rmtree(new, ignore_errors=True)
    partial = root / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    subprocess.run([env / "bin" / "python", "-c", GENERATE, partial], check=True)
    partial.rename(new)

    wheels = root / "wheels"
    # A wheel of any one platform: only its data is read.
    platform = ["--only-binary=:all:", "--python-version", "3.11", "--platform", "manylinux2014_x86_64"]
    subprocess.run([*pip, "download", f"onnx=={OLD}", "--no-deps", *platform, "-d", wheels], check=True)
    wheel = next(wheels.glob("onnx-*.whl"))
    prefix = "onnx/backend/test/data/node/"
    shutil.rmtree(partial, ignore_errors=True)
    with zipfile.ZipFile(wheel) as z:
        for name in z.namelist():
            parts = name.removeprefix(prefix).split("/")
            if not name.startswith(prefix) or not parts[-1]:
                continue
            if parts[1:] == ["model.onnx"] or (len(parts) == 3 and parts[1] == "test_data_set_0"):
                to = partial / parts[0] / parts[-1]
                to.parent.mkdir(parents=True, exist_ok=True)
                to.write_bytes(z.read(name))
    shutil.rmtree(old, ignore_errors=True)
    partial.rename(old)
    for suite in (new, old):
        print(f"{suite.name}: {sum(1 for _ in suite.iterdir())} cases")


main()
