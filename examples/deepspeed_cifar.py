"""Train a small network on images of CIFAR's size with DeepSpeed.

cd examples
deepspeed --num_gpus 2 deepspeed_cifar.py --deepspeed --deepspeed_config configs/ds_config.json
"""

from __future__ import annotations

import argparse

import deepspeed
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(32, 64, 5)
        self.fc1 = nn.Linear(64 * 5 * 5, 1024)
        self.fc2 = nn.Linear(1024, 512)
        self.fc3 = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.flatten(1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


def add_argument() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="CIFAR")
    parser.add_argument("-e", "--epochs", type=int, default=2)
    parser.add_argument("--images", type=int, default=64, help="images in the training set")
    parser.add_argument("--local_rank", type=int, default=-1, help="passed in by the launcher")
    parser = deepspeed.add_config_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = add_argument()
    deepspeed.init_distributed()
    torch.manual_seed(0)

    # In place of torchvision's CIFAR10, which would have to be downloaded.
    images = torch.randn(args.images, 3, 32, 32)
    trainset = TensorDataset(images, torch.randint(10, (args.images,)))

    net = Net()
    parameters = filter(lambda p: p.requires_grad, net.parameters())
    model_engine, _, trainloader, _ = deepspeed.initialize(
        args=args, model=net, model_parameters=parameters, training_data=trainset
    )
    dtype = next(net.parameters()).dtype

    for epoch in range(args.epochs):
        for i, (inputs, labels) in enumerate(trainloader):
            inputs = inputs.to(model_engine.device, dtype)
            labels = labels.to(model_engine.device)

            outputs = model_engine(inputs)
            loss = F.cross_entropy(outputs.float(), labels)

            model_engine.backward(loss)
            model_engine.step()

            if model_engine.global_rank == 0:
                print(f"epoch {epoch} batch {i} loss {loss.item()!r}", flush=True)


if __name__ == "__main__":
    main()
