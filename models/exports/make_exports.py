"""Export well-known networks with both PyTorch exporters and keep their skeletons.

usage: python make_exports.py [NAME ...]

Needs torch, torchvision, timm, onnx and onnxscript. NAME picks networks by name (default: all of
them). Writes <network>.<variant>.onnx.gz beside this script, and when all are made the table in
README.md. The weights are what each network starts with after torch.manual_seed(0), so tensors
that are equal before training are merged by the exporter as they are in a user's file.

A skeleton is the model without the bytes of its large float tensors: the graph is exact, the file
is small. README.md says what is cleared and how to fill it.
"""

import contextlib
import gzip
import importlib.util
import io
import logging
import math
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import onnx
import timm
import timm.layers
import torch
import torchvision
from torch import nn

HERE = Path(__file__).resolve().parent
KEPT_INITIALIZER = 64  # a float32 initializer with at most this many elements keeps its values
KEPT_CONSTANT = 4096  # the same for the tensors of Constant nodes
MARK = "slrc.skeleton"


# ---------------------------------------------------------------- networks of our own


class CifarBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.downsample(x))


class CifarResNet18(nn.Module):
    """ResNet-18 for 32x32 images: a 3x3 stem, no pooling before the first stage."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        channels = 64
        for number, width in enumerate((64, 128, 256, 512), start=1):
            stride = 1 if number == 1 else 2
            stage = nn.Sequential(CifarBlock(channels, width, stride), CifarBlock(width, width, 1))
            self.add_module(f"layer{number}", stage)
            channels = width
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, 10)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class CifarVgg11(nn.Module):
    """The convolutions of torchvision's vgg11_bn on 32x32 images, and one linear layer."""

    def __init__(self):
        super().__init__()
        self.features = torchvision.models.vgg11_bn(weights=None).features
        self.classifier = nn.Linear(512, 10)

    def forward(self, x):
        return self.classifier(torch.flatten(self.features(x), 1))


BERT = {"vocabulary": 30522, "positions": 512, "types": 2, "width": 128, "inner": 512, "layers": 2, "heads": 2}


class BertEmbeddings(nn.Module):
    def __init__(self):
        super().__init__()
        width = BERT["width"]
        self.word_embeddings = nn.Embedding(BERT["vocabulary"], width, padding_idx=0)
        self.position_embeddings = nn.Embedding(BERT["positions"], width)
        self.token_type_embeddings = nn.Embedding(BERT["types"], width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(0.1)
        self.register_buffer("position_ids", torch.arange(BERT["positions"])[None], persistent=False)

    def forward(self, input_ids, token_type_ids):
        positions = self.position_ids[:, : input_ids.shape[1]]
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(x + self.position_embeddings(positions)))


class BertSelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        width = BERT["width"]
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x, mask):
        size = BERT["width"] // BERT["heads"]

        def heads(y):
            return y.view(*y.shape[:2], BERT["heads"], size).permute(0, 2, 1, 3)

        query, key, value = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(size) + mask
        mixed = torch.matmul(self.dropout(torch.softmax(scores, dim=-1)), value)
        mixed = mixed.permute(0, 2, 1, 3).contiguous()
        return mixed.view(*mixed.shape[:2], BERT["width"])


class BertResidual(nn.Module):
    """A linear layer, then add and LayerNorm: the output half of attention and of the perceptron."""

    def __init__(self, inputs):
        super().__init__()
        self.dense = nn.Linear(inputs, BERT["width"])
        self.LayerNorm = nn.LayerNorm(BERT["width"], eps=1e-12)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x, shortcut):
        return self.LayerNorm(self.dropout(self.dense(x)) + shortcut)


class BertLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.ModuleDict({"self": BertSelfAttention(), "output": BertResidual(BERT["width"])})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(BERT["width"], BERT["inner"])})
        self.output = BertResidual(BERT["inner"])

    def forward(self, x, mask):
        x = self.attention["output"](self.attention["self"](x, mask), x)
        return self.output(nn.functional.gelu(self.intermediate["dense"](x)), x)


class BertEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.ModuleList(BertLayer() for _ in range(BERT["layers"]))

    def forward(self, x, mask):
        for layer in self.layer:
            x = layer(x, mask)
        return x


class BertModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings = BertEmbeddings()
        self.encoder = BertEncoder()
        self.pooler = nn.ModuleDict({"dense": nn.Linear(BERT["width"], BERT["width"])})

    def forward(self, input_ids, attention_mask, token_type_ids):
        mask = attention_mask[:, None, None, :].to(torch.float32)
        mask = (1.0 - mask) * torch.finfo(torch.float32).min
        x = self.encoder(self.embeddings(input_ids, token_type_ids), mask)
        return torch.tanh(self.pooler["dense"](x[:, 0]))


class BertClassifier(nn.Module):
    """BERT of two layers with the parameter names of the published checkpoints."""

    def __init__(self):
        super().__init__()
        self.bert = BertModel()
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(BERT["width"], 2)

    def forward(self, input_ids, attention_mask, token_type_ids):
        return self.classifier(self.dropout(self.bert(input_ids, attention_mask, token_type_ids)))


# ---------------------------------------------------------------- the corpus


def mnist_cnn():
    path = HERE.parent / "mnist_cnn" / "make.py"
    spec = importlib.util.spec_from_file_location("mnist_cnn_make", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MnistCnn()


def vit(fused):
    timm.layers.set_fused_attn(fused)
    return timm.create_model("vit_small_patch16_224", pretrained=False)


def image(channels, side):
    return lambda batch: {"input": torch.rand(batch, channels, side, side)}


def tokens(batch):
    return {
        "input_ids": torch.randint(0, BERT["vocabulary"], (batch, 128)),
        "attention_mask": torch.ones(batch, 128, dtype=torch.int64),
        "token_type_ids": torch.zeros(batch, 128, dtype=torch.int64),
    }


CNN = ("torchscript", "dynamo", "dynamo_raw")
PLAIN = ("torchscript", "dynamo")

# network: how it is made, its inputs, its variants, the opset of the dynamo export (None: the default)
CORPUS = {
    "mnist_cnn": (mnist_cnn, image(1, 28), CNN, None),
    "resnet18_cifar": (CifarResNet18, image(3, 32), CNN, None),
    "vgg11_bn_cifar": (CifarVgg11, image(3, 32), CNN, None),
    "resnet18": (lambda: torchvision.models.resnet18(weights=None), image(3, 224), CNN, None),
    "resnet50": (lambda: torchvision.models.resnet50(weights=None), image(3, 224), CNN, None),
    "vgg11_bn": (
        lambda: torchvision.models.vgg11_bn(weights=None),
        image(3, 224),
        (*CNN, "torchscript_train"),
        None,
    ),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(weights=None), image(3, 224), CNN, None),
    "vit_small_patch16_224": (lambda: vit(False), image(3, 224), PLAIN, None),
    "vit_small_patch16_224_sdpa": (lambda: vit(True), image(3, 224), PLAIN, None),
    "vit_small_patch16_224_sdpa_opset23": (lambda: vit(True), image(3, 224), ("dynamo",), 23),
    "bert_tiny": (BertClassifier, tokens, PLAIN, None),
}


# ---------------------------------------------------------------- exporting


def export_torchscript(net, inputs, path, dynamic, variant, opset):
    training = variant == "torchscript_train"
    keeps_norms = training or any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    options = {}
    if keeps_norms:
        mode = torch.onnx.TrainingMode
        options = {"training": mode.TRAINING if training else mode.PRESERVE, "do_constant_folding": False}
    if dynamic:
        options["dynamic_axes"] = {name: {0: "batch"} for name in (*inputs, "logits")}
    torch.onnx.export(
        net.train() if training else net.eval(),
        tuple(inputs.values()),
        str(path),
        dynamo=False,
        opset_version=opset or 17,
        input_names=list(inputs),
        output_names=["logits"],
        **options,
    )


def export_dynamo(net, inputs, path, dynamic, variant, opset):
    options = {}
    if dynamic:
        batch = torch.export.Dim("batch")
        options["dynamic_shapes"] = tuple({0: batch} for _ in inputs)
    torch.onnx.export(
        net.eval(),
        tuple(inputs.values()),
        str(path),
        dynamo=True,
        optimize=variant != "dynamo_raw",
        external_data=False,
        opset_version=opset,
        input_names=list(inputs),
        output_names=["logits"],
        **options,
    )


def export(name, variant):
    """The exported model, its parameter count in torch, and whether the batch is dynamic."""
    make, sample, _, opset = CORPUS[name]
    torch.manual_seed(0)
    net = make()
    parameters = sum(p.numel() for p in net.parameters())
    exporter = export_torchscript if variant.startswith("torchscript") else export_dynamo
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        for dynamic in (True, False):
            try:
                with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    exporter(net, sample(2 if dynamic else 1), path, dynamic, variant, opset)
                break
            except Exception as error:
                if not dynamic:
                    raise
                print(f"{name}.{variant}: no dynamic batch: {str(error).splitlines()[0]}", file=sys.stderr)
        return onnx.load(path), parameters, dynamic


# ---------------------------------------------------------------- skeletons


def graphs(graph):
    """The graph and every graph inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from graphs(inner)


def clear_values(tensor, kept):
    if tensor.data_type == onnx.TensorProto.FLOAT and math.prod(tensor.dims) > kept:
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")


def clear_notes(message):
    """Drop documentation and metadata, wherever the message has a field for them."""
    for field in ("doc_string", "metadata_props"):
        if field in message.DESCRIPTOR.fields_by_name:
            message.ClearField(field)


def skeleton(model):
    clear_notes(model)
    model.metadata_props.add(key=MARK, value="1")
    nodes = [node for function in model.functions for node in function.node]
    for function in model.functions:
        clear_notes(function)
        function.ClearField("value_info")
    for graph in graphs(model.graph):
        clear_notes(graph)
        graph.ClearField("value_info")
        nodes.extend(graph.node)
        for item in (*graph.input, *graph.output, *graph.initializer):
            clear_notes(item)
        for tensor in graph.initializer:
            clear_values(tensor, KEPT_INITIALIZER)
    for node in nodes:
        clear_notes(node)
        for attribute in node.attribute:
            clear_notes(attribute)
            if attribute.HasField("t"):
                clear_values(attribute.t, KEPT_CONSTANT)
    return model


def write(model, path):
    # No file name and no time in the header, so the bytes depend on the model alone.
    with path.open("wb") as raw:
        with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=raw, mtime=0) as out:
            out.write(model.SerializeToString(deterministic=True))


# ---------------------------------------------------------------- the table


def row(file, model, parameters, dynamic):
    graph = model.graph
    floats = sum(math.prod(t.dims) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    opset = next(o.version for o in model.opset_import if o.domain == "")
    exporter = "TorchScript" if ".torchscript" in file else "dynamo"
    histogram = sorted(Counter(n.op_type for n in graph.node).items(), key=lambda item: (-item[1], item[0]))
    ops = ", ".join(f"{op} {count}" for op, count in histogram)
    cells = (
        f"`{file}`",
        exporter,
        opset,
        len(graph.node),
        len(graph.initializer),
        f"{parameters:,}",
        f"{floats:,}",
        "dynamic" if dynamic else "1",
        ops,
    )
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def write_table(rows):
    head = "| file | exporter | opset | nodes | initializers | parameters | floats | batch | ops |"
    rule = "|---|---|---|---|---|---|---|---|---|"
    path = HERE / "README.md"
    before, rest = path.read_text().split("<!-- table -->\n")
    _, after = rest.split("<!-- end of table -->\n")
    table = "\n".join([head, rule, *rows]) + "\n"
    path.write_text(f"{before}<!-- table -->\n{table}<!-- end of table -->\n{after}")


def main():
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    names = sys.argv[1:] or list(CORPUS)
    rows = []
    for name in names:
        for variant in CORPUS[name][2]:
            model, parameters, dynamic = export(name, variant)
            path = HERE / f"{name}.{variant}.onnx.gz"
            write(skeleton(model), path)
            rows.append(row(path.name, model, parameters, dynamic))
            print(f"{path.name}: {path.stat().st_size} bytes")
    if names == list(CORPUS):
        write_table(rows)


if __name__ == "__main__":
    main()
