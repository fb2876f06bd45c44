"""Models of images: ViT and ConvNeXt, as timm ships them and publications count them."""

from __future__ import annotations

from memlens.models.shape import ModelShape

__all__ = ["MODELS"]

_PIXELS = 224
_CLASSES = 1000
_ROUNDING = 500
"""Half of the thousand parameters in which most counts are given."""


def _vit(
    size: str, timm: str, patch: int, width: int, ffn: int, layers: int, heads: int,
    thousands: int, has_head: bool = True, rounding: int = _ROUNDING,
) -> ModelShape:  # fmt: skip
    """A ViT. timm gives those without published ImageNet-1k weights no head."""
    config = {
        "image_size": _PIXELS,
        "patch_size": patch,
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    return ModelShape(
        name=f"vit-{size.lower()}",
        title=f"ViT-{size}",
        kind="image",
        model_class="ViTForImageClassification" if has_head else "ViTModel",
        config=config | {"num_labels": _CLASSES} if has_head else config,
        published_parameters=thousands * 1000,
        rounding=rounding,
        source=f"timm's {timm}" + ("" if has_head else ", num_classes=0 as is its default"),
        arguments={} if has_head else {"add_pooling_layer": False},
        has_head=has_head,
    )


def _convnext(
    size: str, timm: str, widths: tuple[int, ...], third: int, thousands: int
) -> ModelShape:
    """A ConvNeXt: four stages, of which the third differs in depth."""
    return ModelShape(
        name=f"convnext-{size.lower()}",
        title=f"ConvNeXt-{size}",
        kind="image",
        model_class="ConvNextForImageClassification",
        config={
            "image_size": _PIXELS,
            "hidden_sizes": widths,
            "depths": (3, 3, third, 3),
            "num_labels": _CLASSES,
        },
        published_parameters=thousands * 1000,
        rounding=_ROUNDING,
        source=f"timm's {timm} (arXiv 2201.03545)",
    )


MODELS: tuple[ModelShape, ...] = (
    _vit("S", "vit_small_patch32_224", 32, 384, 1536, 12, 6, 22_879),
    _vit("B", "vit_base_patch32_224", 32, 768, 3072, 12, 12, 88_224),
    _vit("L", "vit_large_patch32_224", 32, 1024, 4096, 24, 16, 305_510, has_head=False),
    _vit("H", "vit_huge_patch14_224", 14, 1280, 5120, 32, 16, 630_765, has_head=False),
    _vit("G", "vit_giant_patch14_224", 14, 1408, 6144, 40, 16, 1_012_610, rounding=5_000),
    _convnext("T", "convnext_tiny", (96, 192, 384, 768), 9, 28_589),
    _convnext("S", "convnext_small", (96, 192, 384, 768), 27, 50_224),
    _convnext("B", "convnext_base", (128, 256, 512, 1024), 27, 88_591),
    _convnext("L", "convnext_large", (192, 384, 768, 1536), 27, 197_767),
    _convnext("XL", "convnext_xlarge", (256, 512, 1024, 2048), 27, 350_197),
)
