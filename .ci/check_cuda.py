#!/usr/bin/env python3
"""Compiles the CUDA source of every model with the real NVRTC, without a GPU, and reports what ptxas makes of it.

    python3 .ci/check_cuda.py [--slrc target/release/slrc] [--archs 75,80,90] [--models small|all] [--table FILE]

Needs the PyPI wheels nvidia-cuda-nvrtc-cu12 and nvidia-cuda-nvcc-cu12; they are installed into a virtual environment of the
script's own where --nvidia names none. A kernel that spills registers or does not compile fails the check. Options are
those of runtime/src/cuda/compile.rs; the test beside them keeps the two lists equal.
"""

import argparse
import ctypes
import gzip
import pathlib
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
WHEELS = ["nvidia-cuda-nvrtc-cu12==12.9.86"]
OPTIONS = ["--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true"]

SMALL = [
    ("mnist_cnn", "--modules 3 --batch 8"),
    ("mnist_cnn", "--modules 3 --batch 8 --reconcile exact"),
    ("mnist_deep8", "--per-layer --batch 8 --reconcile bp-free"),
    ("mnist_mlp", "--modules 2 --batch 8 --optimizer adamw"),
    ("mnist_vit", "--modules 2 --batch 8"),
    ("tokens_bert", "--modules 2 --batch 4"),
    ("mnist_cnn", "--modules 3 --batch 8 --precision tf32"),
    ("mnist_cnn", "--modules 1 --batch 8 --prologues products"),
    ("mnist_cnn", "--modules 2 --batch 8 --prologues products --precision bf16"),
    ("mnist_vit", "--modules 2 --batch 8 --reconcile exact --precision bf16"),
]
LARGE = [
    ("resnet18_cifar.torchscript", "--modules 4 --batch 64"),
    ("resnet50.torchscript", "--modules 4 --batch 64"),
    ("vgg11_bn.torchscript", "--modules 4 --batch 32"),
    ("mobilenet_v2.torchscript", "--modules 4 --batch 64"),
    ("vit_small_patch16_224.dynamo", "--modules 4 --batch 64"),
    ("resnet50.torchscript", "--modules 1 --batch 64 --recompute none --prologues products"),
    ("resnet50.torchscript", "--modules 4 --batch 64 --precision tf32"),
    ("resnet50.torchscript", "--modules 4 --batch 64 --precision bf16"),
    ("mobilenet_v2.torchscript", "--modules 4 --batch 64 --precision tf32"),
    ("vit_small_patch16_224.dynamo", "--modules 4 --batch 64 --precision tf32"),
    ("vit_small_patch16_224.dynamo", "--modules 4 --batch 64 --precision bf16"),
    ("bert_tiny.dynamo", "--modules 2 --batch 32 --shape input_ids=Nx128 --shape attention_mask=Nx128 --shape token_type_ids=Nx128"),
]


class Nvrtc:
    """The few calls needed, through ctypes."""

    def __init__(self, library):
        self.lib = ctypes.CDLL(str(library))

    def compile(self, source, arch):
        """cubin bytes and the log; raises where the source does not compile."""
        lib, program = self.lib, ctypes.c_void_p()
        call = lambda f, *a: self.check(getattr(lib, f)(*a), f)
        call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
        options = [f"--gpu-architecture=sm_{arch}", *OPTIONS, "--ptxas-options=-v"]
        array = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
        code = lib.nvrtcCompileProgram(program, len(options), array)
        size = ctypes.c_size_t()
        call("nvrtcGetProgramLogSize", program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        call("nvrtcGetProgramLog", program, log)
        text = log.value.decode(errors="replace")
        if code != 0:
            raise RuntimeError(text)
        call("nvrtcGetCUBINSize", program, ctypes.byref(size))
        cubin_bytes = size.value
        call("nvrtcDestroyProgram", ctypes.byref(program))
        return cubin_bytes, text

    @staticmethod
    def check(code, name):
        if code != 0:
            raise RuntimeError(f"{name} returned {code}")


def library(nvidia):
    if nvidia is None:
        nvidia = ROOT / "target/nvidia"
        if not (nvidia / "bin").exists():
            subprocess.run([sys.executable, "-m", "venv", nvidia], check=True)
        subprocess.run([nvidia / "bin/pip", "install", "-q", "--no-deps", *WHEELS], check=True)
    found = sorted(pathlib.Path(nvidia).glob("lib/python*/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12"))
    if not found:
        sys.exit(f"no libnvrtc.so.12 below {nvidia}")
    return found[0]


def kernels(slrc, name, options, folder):
    model = ROOT / f"models/{name}/model.onnx"
    if not model.exists():
        model = folder / "model.onnx"
        model.write_bytes(gzip.decompress((ROOT / f"models/exports/{name}.onnx.gz").read_bytes()))
    out = folder / "plan"
    subprocess.run(
        [slrc, "partition", model, *options.split(), "--init", "random", "--target", "cuda", "-o", out],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    return (out / "kernels.cu").read_text()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--slrc", default=ROOT / "target/release/slrc")
    p.add_argument("--nvidia", help="a virtual environment that holds the wheels")
    p.add_argument("--archs", default="75,80,90")
    p.add_argument("--models", choices=["small", "all"], default="small")
    a = p.parse_args()
    nvrtc = Nvrtc(library(a.nvidia))
    failed = 0
    print("| model | options | arch | functions | most registers | spilled, bytes | shared memory, most bytes | cubin, KiB | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, options in SMALL + (LARGE if a.models == "all" else []):
        with tempfile.TemporaryDirectory() as folder:
            source = kernels(a.slrc, name, options, pathlib.Path(folder))
        functions = source.count("__global__")
        # Turing's tensor cores know neither TF32 nor bf16.
        rounded = "--precision" in options
        for arch in (arch for arch in a.archs.split(",") if not rounded or int(arch) >= 80):
            start = time.time()
            try:
                size, log = nvrtc.compile(source, arch)
            except RuntimeError as e:
                print(f"{name} {options}, sm_{arch}: does not compile\n{e}")
                failed += 1
                continue
            numbers = lambda pattern: [int(n) for n in re.findall(pattern, log)]
            registers = max(numbers(r"Used (\d+) registers"), default=0)
            spilled = sum(numbers(r"(\d+) bytes spill stores"))
            shared = max(numbers(r"(\d+) bytes smem"), default=0)
            seen = len(numbers(r"Used (\d+) registers"))
            if spilled or seen != functions:
                failed += 1
                for part in re.split(r"Compiling entry function", log)[1:]:
                    if re.search(r"[1-9]\d* bytes spill stores", part):
                        print(f"spills: {part.split(chr(39))[1]}", file=sys.stderr)
            print(
                f"| {name} | {options} | sm_{arch} | {functions} | {registers} | {spilled} | {shared} | {size // 1024} "
                f"| {time.time() - start:.1f} |",
                flush=True,
            )
    if failed:
        sys.exit(f"{failed} failed")


if __name__ == "__main__":
    main()
