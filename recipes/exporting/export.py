"""Taking a trained network away as timm weights, checked before they are kept.

One file where timm's classifier is one weight and bias and the head is linear: ``timm.create_model(name, num_classes=C,
checkpoint_path=FILE)`` loads it. Otherwise two: the backbone (``num_classes=0``), and the head beside it.
Class names, preprocessing and architecture are JSON in the safetensors metadata.
"""

from __future__ import annotations

import copy
import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from kernels.batch import Output
from lightning_modules.backbones.weights import classifier_keys
from lightning_modules.heads.linear import Linear
from lightning_modules.network import Network
from lightning_modules.surgery.base import fold
from recipes.building.exported import FORMAT_VERSION, head_path, load_exported

TOLERANCE = 1e-5  # largest absolute difference of any output in float32
_OURS = ("cifar_resnet", "convnet", "small_stem")  # modules whose models need an import of ours before timm knows them


def export_safetensors(
    network: Network,
    path: str | Path,
    *,
    name: str,
    kwargs: dict[str, Any],
    in_channels: int,
    classes: list[str],
    preprocessing: dict[str, Any],
    sample_images: Tensor,
) -> list[Path]:
    """Write ``network`` as safetensors in timm's key names, float32.

    The files are written to a temporary folder beside ``path``, loaded again through timm, compared with the network
    on ``sample_images``, and only then renamed into place.

    Args:
        network: trained; not changed.
        path: ``*.safetensors``; must not exist.
        name: timm's name of the backbone.
        kwargs: further arguments of the timm model.
        in_channels: channels of the image.
        classes: names, in the order of the logits.
        preprocessing: ``image_size``, ``resize_size`` and ``interpolation`` of evaluation images; all of it is stored,
            with timm's ``mean``, ``std``, ``input_size`` and ``crop_pct``.
        sample_images: ``[N, in_channels, H, W]`` in [0, 1], real ones.

    Returns:
        The written paths: the model, and the head where it is apart.

    Raises:
        FileExistsError: a file is there already.
        ValueError: arguments that do not fit the network, or a file that timm cannot load or that gives other outputs.
    """
    path = Path(path)
    _check_arguments(network, path, classes, preprocessing, sample_images)
    eager = copy.deepcopy(network).cpu().float().eval()
    with torch.no_grad():
        expected = eager(sample_images.detach().cpu().float())
    eager.head = eager.head.plain()
    kept = fold(eager.backbone, eager.surgeries)
    metadata = _metadata(eager, name, kwargs, in_channels, classes, preprocessing)
    metadata["surgery"] = json.dumps({key: eager.surgery_config[key] for key in kept})
    for line in (line for lines in kept.values() for line in lines):
        reader = "recipes.building.exported.load_exported reads the file, timm alone cannot"
        warnings.warn(f"{line}; {reader}", stacklevel=2)
    keys = {} if kept else _classifier(eager, name, in_channels, kwargs)
    targets = [path] if keys else [path, head_path(path)]
    metadata["load_with"] = (
        f"timm.create_model({name!r}, num_classes={len(classes) if keys else 0}, in_chans={in_channels}, "
        f"checkpoint_path=FILE, **kwargs)"
        if not kept
        else "recipes.building.exported.load_exported(FILE)"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    for target in targets:
        if target.exists():
            raise FileExistsError(f"{target} exists and is not overwritten; choose another path")
    # In the target's folder, so that the rename stays on one file system; removed with its content on any error.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        files = [Path(folder) / target.name for target in targets]
        _write(eager, files, keys, metadata)
        _check_files(eager, expected, files[0], bool(keys), metadata, sample_images.detach().cpu().float())
        for file, target in zip(files, targets, strict=True):
            file.chmod(0o666 & ~_umask())
            os.replace(file, target)
    return targets


def _umask() -> int:
    """What this process takes from the mode of a new file; safetensors writes files for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _check_arguments(
    network: Network, path: Path, classes: list[str], preprocessing: dict[str, Any], images: Tensor
) -> None:
    if path.suffix != ".safetensors":
        raise ValueError(f"export to {path}: timm tells the format by the ending; use {path.stem}.safetensors")
    if len(classes) != network.head.num_classes:
        raise ValueError(
            f"{len(classes)} class names for a head of {network.head.num_classes} classes; give one for each"
        )
    if absent := {"image_size", "resize_size", "interpolation"} - preprocessing.keys():
        raise ValueError(f"preprocessing lacks {sorted(absent)}; it has {sorted(preprocessing)}")
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"sample_images {list(images.shape)}: the check needs at least one image [N, C, H, W]")


def _metadata(
    network: Network,
    name: str,
    kwargs: dict[str, Any],
    in_channels: int,
    classes: list[str],
    preprocessing: dict[str, Any],
) -> dict[str, str]:
    size = preprocessing["image_size"]
    stated = {
        **preprocessing,
        "mean": network.normalize.mean.tolist(),
        "std": network.normalize.std.tolist(),
        "input_size": [in_channels, size, size],
        "crop_pct": size / preprocessing["resize_size"],
    }
    ours = any(name.partition(".")[0] in timm.list_models(module=module) for module in _OURS)
    return {
        "format": "pt",
        "format_version": str(FORMAT_VERSION),
        "architecture": name,
        "kwargs": json.dumps(kwargs),
        "in_channels": str(in_channels),
        "num_classes": str(len(classes)),
        "classes": json.dumps(classes),
        "preprocessing": json.dumps(stated),
        "import": "lightning_modules.backbones" if ours else "",
    }


def _classifier(
    network: Network, name: str, in_channels: int, kwargs: dict[str, Any]
) -> dict[str, tuple[str, torch.Size]]:
    """Our head's keys -> timm's keys and shapes; empty where either side is not one weight and bias."""
    classes, features = network.head.num_classes, network.num_features
    shapes = classifier_keys(name, in_channels, kwargs, classes)
    weight = [key for key, shape in shapes.items() if key.endswith(".weight") and shape[:2] == (classes, features)]
    bias = [key for key, shape in shapes.items() if key.endswith(".bias") and shape == (classes,)]
    one = len(shapes) == 2 and len(weight) == len(bias) == 1 and shapes[weight[0]].numel() == classes * features
    if not one or type(network.head) is not Linear:
        return {}
    return {"weight": (weight[0], shapes[weight[0]]), "bias": (bias[0], shapes[bias[0]])}


def _write(
    network: Network, files: list[Path], keys: dict[str, tuple[str, torch.Size]], metadata: dict[str, str]
) -> None:
    head = network.head
    kind = f"{type(head).__module__}.{type(head).__qualname__}"
    names = {ours: timms for ours, (timms, _) in keys.items()}
    metadata["head"] = json.dumps({"class": kind, "settings": head.settings(), "keys": names})
    state, head_state = network.backbone.state_dict(), dict(head.state_dict())
    for ours, (timms, shape) in keys.items():  # a head without bias leaves timm's at zero
        state[timms] = head_state[ours].reshape(shape) if ours in head_state else torch.zeros(shape)
    for file, content in zip(files, (state, head_state), strict=False):
        save_file({key: value.detach().clone().contiguous() for key, value in content.items()}, file, metadata)
        with open(file, "rb") as written:
            os.fsync(written.fileno())


@torch.no_grad()
def _check_files(
    network: Network, expected: Output, file: Path, single: bool, metadata: dict[str, str], images: Tensor
) -> None:
    """Compare what the file gives with what the trained network gave, surgery and all."""
    name, classes = metadata["architecture"], int(metadata["num_classes"]) if single else 0
    kwargs, in_channels = json.loads(metadata["kwargs"]), int(metadata["in_channels"])
    if metadata["surgery"] != "{}":
        _compare(load_exported(file)[0](images), expected, name)
        return
    try:
        model: Any = timm.create_model(
            name, num_classes=classes, in_chans=in_channels, checkpoint_path=str(file), **kwargs
        )
    except RuntimeError as error:
        raise ValueError(
            f"timm's {name} cannot load the exported weights, nothing was kept: {str(error)[:400]}. The network's "
            f"modules differ from timm's (surgery replaced or parametrized some), or name and kwargs are not its own"
        ) from error
    normalized = network.normalize(images)
    if single:
        _compare(Output(logits=model.eval()(normalized)), Output(logits=expected.logits), name)
    elif not network.headless:
        features = model.eval().forward_head(model.forward_features(normalized), pre_logits=True)
        _compare(Output(features=features), Output(features=expected.features), name)
    _compare(load_exported(file)[0](images), expected, name)


def _compare(found: Output, expected: Output, name: str) -> None:
    for what in ("features", "logits", "embedding"):
        wanted = getattr(expected, what)
        if wanted is None:
            continue
        difference = (getattr(found, what) - wanted).abs().max().item()
        if not difference <= TOLERANCE:  # also refuses NaN
            raise ValueError(
                f"the exported {name} gives other {what} than the network: largest difference {difference:.3g}, "
                f"allowed {TOLERANCE}; nothing was kept. Its forward differs from timm's (surgery, or other kwargs)"
            )
