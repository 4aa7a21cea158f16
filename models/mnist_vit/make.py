"""A tiny vision transformer for 28x28 digits, exported by the dynamo exporter.

usage: python make.py      (needs torch, onnx and onnxscript; writes model.onnx beside this script)
"""

import math
from pathlib import Path

import onnx
import torch
from torch import nn

WIDTH = 48
HEADS = 4
BLOCKS = 3
MLP_RATIO = 2
PATCH = 7
TOKENS = (28 // PATCH) ** 2


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        batch, tokens, _ = x.shape
        size = WIDTH // HEADS
        qkv = self.qkv(x).reshape(batch, tokens, 3, HEADS, size).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        scores = torch.matmul(query, key.transpose(-2, -1)) / math.sqrt(size)
        mixed = torch.matmul(torch.softmax(scores, dim=-1), value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, WIDTH))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, MLP_RATIO * WIDTH)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(MLP_RATIO * WIDTH, WIDTH)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attn = Attention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = Mlp()

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MnistVit(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Conv2d(1, WIDTH, PATCH, stride=PATCH)
        self.cls_token = nn.Parameter(torch.empty(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.empty(1, TOKENS + 1, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.02)

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        token = self.cls_token.expand(x.shape[0], -1, -1)
        x = torch.cat([token, x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def build():
    """The network with fresh seeded weights, in evaluation mode.

    Fresh LayerNorms hold equal tensors, and the exporter merges equal tensors; a little noise
    keeps every parameter its own.
    """
    torch.manual_seed(0)
    net = MnistVit()
    for module in net.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.normal_(module.bias, 0.0, 0.02)
    return net.eval()


def without_traces(model):
    """The same model without the stack traces and other notes the exporter leaves."""
    graph = model.graph
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    return model


def main():
    program = torch.onnx.export(
        build(),
        (torch.rand(2, 1, 28, 28),),
        dynamo=True,
        optimize=True,
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
    )
    onnx.save(without_traces(program.model_proto), Path(__file__).resolve().parent / "model.onnx")


if __name__ == "__main__":
    main()
