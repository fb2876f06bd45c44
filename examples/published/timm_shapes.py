"""ViT and ConvNeXt with the parameters of timm's models: the same shapes, in the same order.

timm itself needs torchvision. What decides about memory is which tensors there are, how large, and in
which order; compared with timm 1.0.31, name by name. Weights are random.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(query, key, value)
        return self.proj(x.transpose(1, 2).reshape(batch, length, width))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(
        self, patch: int, width: int, hidden: int, layers: int, heads: int, classes: int
    ) -> None:
        super().__init__()
        tokens = (224 // patch) ** 2 + 1
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.patch_embed = nn.Conv2d(3, width, patch, stride=patch)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes) if classes else nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of images."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-6))
        self.conv_dw = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return y.mul(self.gamma.reshape(1, -1, 1, 1)) + x


class ConvNeXt(nn.Module):
    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 4, stride=4), ChannelNorm(widths[0], eps=1e-6)
        )
        stages = []
        before = widths[0]
        for width, depth in zip(widths, depths, strict=True):
            down = (
                [ChannelNorm(before, eps=1e-6), nn.Conv2d(before, width, 2, stride=2)]
                if width != before
                else []
            )
            stages.append(nn.Sequential(*down, *(ConvBlock(width) for _ in range(depth))))
            before = width
        self.stages = nn.Sequential(*stages)
        self.norm = ChannelNorm(before, eps=1e-6)
        self.fc = nn.Linear(before, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stages(self.stem(images))
        return self.fc(self.norm(F.adaptive_avg_pool2d(x, 1)).flatten(1))


def make(name: str) -> nn.Module:
    """A model by its name in publications: `ViT-S`, `ConvNeXt-T`."""
    kind, _, size = name.partition("-")
    if kind == "ViT":
        patch, width, hidden, layers, heads, classes = {
            "S": (32, 384, 1536, 12, 6, 1000),
            "B": (32, 768, 3072, 12, 12, 1000),
            "L": (32, 1024, 4096, 24, 16, 0),
            "H": (14, 1280, 5120, 32, 16, 0),
            "G": (14, 1408, 6144, 40, 16, 1000),
        }[size]
        return ViT(patch, width, hidden, layers, heads, classes)
    widths, third = {
        "T": ((96, 192, 384, 768), 9),
        "S": ((96, 192, 384, 768), 27),
        "B": ((128, 256, 512, 1024), 27),
        "L": ((192, 384, 768, 1536), 27),
        "XL": ((256, 512, 1024, 2048), 27),
    }[size]
    return ConvNeXt(widths, (3, 3, third, 3), 1000)
