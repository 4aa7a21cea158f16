"""A tiny BERT-like classifier over token ids, exported by the dynamo exporter.

usage: python make.py      (needs torch, onnx and onnxscript; writes model.onnx beside this script)
"""

import math
from pathlib import Path

import onnx
import torch
from torch import nn

VOCABULARY = 64
LENGTH = 16
WIDTH = 32
HEADS = 2
BLOCKS = 2
CLASSES = 4


class Embeddings(nn.Module):
    def __init__(self):
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.position_embeddings = nn.Embedding(LENGTH, WIDTH)
        self.token_type_embeddings = nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.register_buffer("position_ids", torch.arange(LENGTH)[None], persistent=False)
        self.register_buffer("token_type_ids", torch.zeros(1, LENGTH, dtype=torch.int64), persistent=False)

    def forward(self, input_ids):
        batch, length = input_ids.shape
        types = self.token_type_ids[:, :length].expand(batch, length)
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(types)
        return self.norm(x + self.position_embeddings(self.position_ids[:, :length]))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, mask):
        batch, length, _ = x.shape
        size = WIDTH // HEADS
        query = self.query(x).view(batch, length, HEADS, size).transpose(1, 2)
        key = self.key(x).view(batch, length, HEADS, size).transpose(1, 2)
        value = self.value(x).view(batch, length, HEADS, size).transpose(1, 2)
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(size) + mask
        mixed = torch.matmul(torch.softmax(scores, dim=-1), value)
        return self.output(mixed.transpose(1, 2).reshape(batch, length, WIDTH))


class Layer(nn.Module):
    """Attention and a two-layer perceptron, each followed by add and LayerNorm (post-norm)."""

    def __init__(self):
        super().__init__()
        self.attention = Attention()
        self.norm1 = nn.LayerNorm(WIDTH, eps=1e-12)
        self.intermediate = nn.Linear(WIDTH, 4 * WIDTH)
        self.act = nn.GELU()
        self.output = nn.Linear(4 * WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x, mask):
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.output(self.act(self.intermediate(x))))


class TokensBert(nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings = Embeddings()
        self.layers = nn.ModuleList(Layer() for _ in range(BLOCKS))
        self.pooler = nn.Linear(WIDTH, WIDTH)
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def forward(self, input_ids, attention_mask):
        mask = (1.0 - attention_mask[:, None, None, :].to(torch.float32)) * -1e9
        x = self.embeddings(input_ids)
        for layer in self.layers:
            x = layer(x, mask)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


def build():
    """The network with fresh seeded weights, in evaluation mode.

    Fresh LayerNorms hold equal tensors, and the exporter merges equal tensors; a little noise
    keeps every parameter its own.
    """
    torch.manual_seed(0)
    net = TokensBert()
    for module in net.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, 0.0, 0.02)
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
    ids = torch.randint(0, VOCABULARY, (2, LENGTH))
    mask = torch.ones(2, LENGTH, dtype=torch.int64)
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        build(),
        (ids, mask),
        dynamo=True,
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        dynamic_shapes={"input_ids": {0: batch}, "attention_mask": {0: batch}},
    )
    onnx.save(without_traces(program.model_proto), Path(__file__).resolve().parent / "model.onnx")


if __name__ == "__main__":
    main()
