#!/usr/bin/env python3
"""The official ONNX tests of nodes and models, put where compiler/tests/conformance reads them.

    .ci/conformance.py FOLDER
    SLRC_CONFORMANCE=FOLDER cargo test -p slrc-compiler --test conformance -- --ignored

The newest onnx package generates its cases of nodes; an older wheel carries those of earlier opsets as files. Beside them
lie what the package has of models: small ones converted from PyTorch, simple ones, and known networks with weights that
are made in their graphs (`light`). All come from PyPI into an environment of their own in FOLDER; nothing of them is kept
in the repository. Every case becomes

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

# The package's models. A network's input is what ONNX's own runner gives it: numbers that rise from 0 to 1.
MODELS = """
import pathlib, shutil, sys
import numpy, onnx
from onnx import numpy_helper

data = pathlib.Path(onnx.__file__).parent / "backend" / "test" / "data"
target = pathlib.Path(sys.argv[1])
for kind in ["pytorch-converted", "pytorch-operator", "simple"]:
    for case in sorted((data / kind).iterdir()):
        if not (case / "model.onnx").exists():
            continue
        folder = target / kind / case.name
        folder.mkdir(parents=True)
        shutil.copy(case / "model.onnx", folder)
        for tensor in (case / "test_data_set_0").glob("*.pb"):
            shutil.copy(tensor, folder)
for path in sorted((data / "light").glob("*.onnx")):
    folder = target / "light" / path.stem
    folder.mkdir(parents=True)
    shutil.copy(path, folder / "model.onnx")
    shutil.copy(path.with_name(f"{path.stem}_output_0.pb"), folder / "output_0.pb")
    graph = onnx.load(path).graph
    filled = {t.name for t in graph.initializer}
    for i, info in enumerate(graph.input):
        if info.name not in filled:
            shape = [d.dim_value or 1 for d in info.type.tensor_type.shape.dim]
            count = int(numpy.prod(shape))
            values = (numpy.arange(count).reshape(shape) / count).astype("f4")
            tensor = numpy_helper.from_array(values, info.name)
            (folder / f"input_{i}.pb").write_bytes(tensor.SerializeToString())
"""
KINDS = ["pytorch-converted", "pytorch-operator", "simple", "light"]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    root = pathlib.Path(sys.argv[1])
    new, old = root / NEW, root / OLD
    models = [root / kind for kind in KINDS]
    if all(folder.is_dir() for folder in [new, old, *models]):
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
    subprocess.run([env / "bin" / "python", "-c", MODELS, partial], check=True)
    for folder in models:
        shutil.rmtree(folder, ignore_errors=True)
        (partial / folder.name).rename(folder)
    partial.rmdir()

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
    for suite in (new, old, *models):
        print(f"{suite.name}: {sum(1 for _ in suite.iterdir())} cases")


main()
