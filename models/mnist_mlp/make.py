"""A multi-layer perceptron for 28x28 digits, exported by the dynamo exporter.

usage: python make.py      (needs torch, onnx and onnxscript; writes model.onnx beside this script)
"""

from pathlib import Path

import onnx
import torch
from torch import nn


class MnistMlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(784, 128)
        self.fc2 = nn.Linear(128, 64)
        self.fc3 = nn.Linear(64, 10)

    def forward(self, x):
        x = torch.flatten(x, 1)
        x = torch.relu(self.fc1(x))
        x = torch.relu(self.fc2(x))
        return self.fc3(x)


def build():
    """The network with fresh seeded weights, in evaluation mode."""
    torch.manual_seed(0)
    return MnistMlp().eval()


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
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
    )
    onnx.save(without_traces(program.model_proto), Path(__file__).resolve().parent / "model.onnx")


if __name__ == "__main__":
    main()
