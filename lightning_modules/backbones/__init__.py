"""Backbones: any timm model, and the small-image models that timm lacks; importing this registers those."""

from lightning_modules.backbones import cifar_resnet, convnet, small_stem  # noqa: F401
