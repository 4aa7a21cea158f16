"""Networks as people make and export them, with random weights: torchvision's, timm's, transformers' and two of our own.

`NETWORKS` has a network's module and its batch of inputs by name; `export` writes it with one of PyTorch's exporters, in
its default, evaluating form or in one of `FORMS`; `evaluated` is what PyTorch computes; `labels` draws classes for what the
network puts out.
"""

import contextlib
import io

import onnx
import torch
from torch import nn

BATCH = 4
TOKENS = 32
VOCABULARY = 5000
# Of BERT and GPT-2 where a small network will do; else twelve.
SMALL_LAYERS = 4
EXPORTERS = ["torchscript", "dynamo"]


class Mlp(nn.Sequential):
    """Three layers on digits."""

    def __init__(self):
        super().__init__(
            nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
            nn.Linear(256, 10),
        )


class Twice(nn.Sequential):
    """Convolution, BatchNorm and ReLU, two times."""

    def __init__(self, inputs, outputs):
        once = lambda i: [nn.Conv2d(i, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*once(inputs), *once(outputs))


class UNet(nn.Module):
    """After Ronneberger, Fischer and Brox, 2015, in the form common today: convolutions keep the size, with BatchNorm.
    Three steps down and up, five classes a pixel."""

    def __init__(self, width=16, classes=5):
        super().__init__()
        widths = [width << i for i in range(4)]
        self.down = nn.ModuleList(Twice(i, o) for i, o in zip([3, *widths], widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1]))
        self.merge = nn.ModuleList(Twice(2 * w, w) for w in reversed(widths[:-1]))
        self.out = nn.Conv2d(width, classes, 1)

    def forward(self, x):
        skips = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else nn.functional.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge):
            x = merge(torch.cat([skips.pop(), up(x)], 1))
        return self.out(x)


class Logits(nn.Module):
    """A network of transformers by its logits alone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits


def vision(name):
    def make(small):
        import torchvision

        return getattr(torchvision.models, name)(weights=None)

    return make


def vit_b_16(small):
    model = vision("vit_b_16")(small)
    # Zeros as it is made: all logits would be zero.
    nn.init.normal_(model.heads.head.weight, std=0.02)
    return model


def vit_small(small):
    import timm

    return timm.create_model("vit_small_patch16_224", pretrained=False)


def gpt2(small, **more):
    import transformers

    layers = SMALL_LAYERS if small else 12
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=2 * TOKENS, n_layer=layers, **more)
    return transformers.GPT2LMHeadModel(config)


def gpt2_with_mask(small):
    return Logits(gpt2(small))


def gpt2_alone(small):
    return gpt2(small, use_cache=False)


def bert(head):
    def make(small):
        import transformers

        layers = SMALL_LAYERS if small else 12
        sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 2 * TOKENS, "num_hidden_layers": layers}
        config = transformers.BertConfig(**sizes)
        return getattr(transformers, head)(config)

    return make


def image(channels, side, smallest=None):
    """Square images; `smallest` where the network takes smaller ones, too."""
    return lambda small: {"input": torch.randn(BATCH, channels, *[smallest if small and smallest else side] * 2)}


def tokens(*names):
    """Ids, and of the last sample only half: the rest is padding."""

    def make(small):
        mask = torch.ones(BATCH, TOKENS, dtype=torch.int64)
        mask[-1, TOKENS // 2 :] = 0
        all_inputs = {
            "input_ids": torch.randint(0, VOCABULARY, (BATCH, TOKENS)),
            "attention_mask": mask,
            "token_type_ids": torch.zeros(BATCH, TOKENS, dtype=torch.int64),
        }
        return {name: all_inputs[name] for name in names}

    return make


BERT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")

# network: how it is made, and its inputs; both in a smaller form if asked to, where there is one
NETWORKS = {
    "mlp": (lambda small: Mlp(), image(1, 28)),
    **{
        name: (vision(name), image(3, 224, 64))
        for name in [
            "resnet18", "resnet50", "vgg11_bn", "mobilenet_v2", "mnasnet1_0", "efficientnet_b0", "regnet_y_400mf",
            "shufflenet_v2_x1_0", "squeezenet1_1", "googlenet", "densenet121", "convnext_tiny",
        ]
    },
    "vit_b_16": (vit_b_16, image(3, 224)),
    "swin_t": (vision("swin_t"), image(3, 224)),
    "vit_small_patch16_224": (vit_small, image(3, 224)),
    "unet": (lambda small: UNet(), image(3, 64)),
    "bert": (bert("BertForSequenceClassification"), tokens(*BERT_INPUTS)),
    "bert_mlm": (bert("BertForMaskedLM"), tokens(*BERT_INPUTS)),
    "gpt2": (gpt2_with_mask, tokens("input_ids", "attention_mask")),
    "gpt2_no_mask": (gpt2_alone, tokens("input_ids")),
}


# VGG's last pool is one that the older exporter can write for images of 224 alone.
ONLY_LARGE = [("vgg11_bn", "torchscript")]


def may_be_small(name, exporter):
    return (name, exporter) not in ONLY_LARGE


def sample(name, small=False):
    torch.manual_seed(1)
    return {k: v.numpy() for k, v in NETWORKS[name][1](small).items()}


def labels(name, x, classes_shape, random):
    """Classes for logits of this shape. For a language model the next token; what follows the last one is drawn."""
    shape = list(classes_shape)
    classes = shape.pop(1 if len(shape) == 4 else -1)
    y = random.integers(0, classes, shape)
    if name.startswith("gpt2"):
        y[:, :-1] = x["input_ids"][:, 1:]
    return y


# Exports other than the default: whether the network is in training mode, and the exporter's options.
FORMS = {
    ("torchscript", "training"): (True, {"training": torch.onnx.TrainingMode.TRAINING, "do_constant_folding": False}),
    ("torchscript", "unfolded"): (False, {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}),
    ("dynamo", "training"): (True, {}),
    ("dynamo", "unfolded"): (False, {"optimize": False}),
}


def made(name, small):
    torch.manual_seed(0)
    make, inputs = NETWORKS[name]
    return make(small).eval(), inputs(small)


def attend_in_steps(model):
    """Attention as products and a softmax, not as one operation of PyTorch's, which some opsets have nothing for."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
        if hasattr(module, "set_attn_implementation"):
            module.set_attn_implementation("eager")


def export(name, exporter, path, small=False, form=None, opset=None, in_steps=False):
    model, x = made(name, small)
    if in_steps:
        attend_in_steps(model)
    training, more = FORMS[exporter, form] if form else (False, {})
    model.train(training)
    options = {"dynamo": True, "verbose": False, "external_data": False} if exporter == "dynamo" else {"dynamo": False}
    names = {"input_names": list(x), "output_names": ["logits"], "opset_version": opset}
    # What an exporter fails at it prints at length, and says once more in its exception.
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(model, tuple(x.values()), path, **names, **options, **more)


def evaluated(name, path, x, small=False):
    """What the network's `eval()` makes of a batch, with the running statistics of an export's file: exporting in training
    mode moves them."""
    model, _ = made(name, small)
    state = model.state_dict()
    for t in onnx.load(path).graph.initializer:
        if t.name in state and "running_" in t.name:
            state[t.name].copy_(torch.from_numpy(onnx.numpy_helper.to_array(t).copy()))
    with torch.no_grad():
        out = model(*(torch.from_numpy(v) for v in x.values()))
    return getattr(out, "logits", out).numpy()
