"""Eight plain convolutions for 28x28 digits, exported by the TorchScript exporter with BatchNorm kept.

usage: python make.py      (needs torch and onnx; writes model.onnx beside this script)
"""

from pathlib import Path

import torch
from torch import nn

# (output channels, stride) of each layer; the images are first pooled to 14x14.
LAYERS = [(16, 1), (16, 1), (16, 1), (32, 2), (32, 1), (32, 1), (32, 1), (32, 1)]


class Layer(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.bn(self.conv(x)))


class MnistDeep8(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = nn.AvgPool2d(2)
        channels = 1
        for number, (outputs, stride) in enumerate(LAYERS, start=1):
            self.add_module(f"layer{number}", Layer(channels, outputs, stride))
            channels = outputs
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, 10)

    def forward(self, x):
        x = self.pool(x)
        for number in range(1, len(LAYERS) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def build():
    """The network with fresh seeded weights, in evaluation mode.

    Noise on the BatchNorm layers and a few passes over random images make no two tensors equal,
    because exporters merge equal ones.
    """
    torch.manual_seed(0)
    net = MnistDeep8()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.normal_(module.bias, 0.0, 0.02)
    net.train()
    with torch.no_grad():
        for _ in range(8):
            net(torch.rand(32, 1, 28, 28))
    return net.eval()


def main():
    torch.onnx.export(
        build(),
        (torch.rand(2, 1, 28, 28),),
        str(Path(__file__).resolve().parent / "model.onnx"),
        dynamo=False,
        opset_version=17,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
    )


if __name__ == "__main__":
    main()
