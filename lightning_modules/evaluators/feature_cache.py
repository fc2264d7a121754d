"""Embeddings of a part of a data set, kept under a name of all that they come from."""

from __future__ import annotations

import hashlib
import json
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_modules.network import Network
from lightning_modules.whole_file import whole_file

#: Embeddings ``[N, D]``, labels ``[N]`` and indices ``[N]`` of a part, on the host; never changed in place.
Rows = tuple[Tensor, Tensor, Tensor]
NAMES = ("embedding", "label", "index")
#: Attributes that say nothing: PyTorch's own of every module, and the objects behind ``Network.surgery_config``.
UNASKED = (frozenset(vars(torch.nn.Module())) - {"training"}) | {"surgeries"}


class FeatureCache:
    """Rows by key, for the evaluators of one command; with a folder, for those of later ones too.

    A file that is damaged or was not written under its key is passed over with a warning, as is a folder that cannot
    be written: what is kept only saves time.

    Args:
        folder: of a file for each key, ``KEY.safetensors``, as large as its rows; made when the first is written. Any
            of them may be removed at any time.

    Attributes:
        asked: whether anything was looked for.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder, self.asked = folder, False
        self._kept: dict[str, Rows] = {}

    def read(self, key: str) -> Rows | None:
        """What was kept under this key; None for nothing."""
        self.asked = True
        if key not in self._kept and self.folder is not None:
            found = _read(self.folder / f"{key}.safetensors", key)
            if found is not None:
                self._kept[key] = found
        return self._kept.get(key)

    def keep(self, key: str, rows: Rows) -> None:
        """Keep rows that nobody changes from now on."""
        self._kept[key] = rows
        if self.folder is not None:
            _write(self.folder / f"{key}.safetensors", key, rows)


def features_key(network: Network, data_key: str) -> str:
    """sha256 of all that decides what a network in eval mode gives for some data, up to rounding by batch size.

    Every weight and buffer, the modules and their settings, the surgery, kind of device, precision, libraries, data.

    Args:
        network: as it is now.
        data_key: that of the part, ``ImageData.key(part)``.
    """
    tensors = {**dict(network.named_buffers()), **network.state_dict()}
    device = next((value.device.type for value in tensors.values() if isinstance(value, Tensor)), "cpu")
    facts = {
        "data": data_key,
        "modules": [repr(network), *((name, _settings(module)) for name, module in network.named_modules())],
        "backbone": [network.backbone_name, network.backbone_kwargs],
        "surgery": network.surgery_config,
        "device": device,
        "precision": [torch.get_float32_matmul_precision(), torch.is_autocast_enabled(device)],
        "versions": [version("torch"), version("timm")],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=repr).encode())
    for name, value in sorted(tensors.items()):
        digest.update(_content(name, value) if isinstance(value, Tensor) else f"{name}\0{value!r}".encode())
    return digest.hexdigest()


def _settings(module: torch.nn.Module) -> dict[str, Any]:
    """What a module was told beside its weights, and its mode: every attribute that PyTorch did not give it.

    An attribute whose repr has an address in it, or changes with use, makes a key that never comes again. That costs a
    computation and is never wrong.
    """
    return {
        key: _content(key, value).hex() if isinstance(value, Tensor) else repr(value)
        for key, value in vars(module).items()
        if key not in UNASKED
    }


def _content(name: str, value: Tensor) -> bytes:
    """sha256 of a tensor: its name, type, shape and bytes."""
    digest = hashlib.sha256(f"{name}\0{value.dtype}\0{list(value.shape)}\0".encode())
    digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _checksum(key: str, rows: Rows) -> str:
    parts = [_content(name, value) for name, value in zip(NAMES, rows, strict=True)]
    return hashlib.sha256(b"".join([key.encode(), *parts])).hexdigest()


def _read(path: Path, key: str) -> Rows | None:
    if not path.exists():
        return None
    try:
        if not path.is_file():  # a pipe would never end
            raise ValueError("it is no file")
        with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
            stated = file.metadata() or {}
            if stated.get("key") != key:
                raise ValueError("it was not written under this name")
            embedding, label, index = (file.get_tensor(name) for name in NAMES)
        if stated.get("sha256") != _checksum(key, (embedding, label, index)):
            raise ValueError("its content does not match its sha256")
    except (OSError, ValueError, SafetensorError) as error:
        warnings.warn(f"{path} is passed over, and the embeddings are computed again: {error}", stacklevel=2)
        return None
    return embedding, label, index


def _write(path: Path, key: str, rows: Rows) -> None:
    """Whole or not at all, and as readable as its folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stated = {"key": key, "sha256": _checksum(key, rows)}
        with whole_file(path) as part:
            save_file(dict(zip(NAMES, (value.contiguous() for value in rows), strict=True)), part, stated)
    except (OSError, SafetensorError) as error:
        warnings.warn(f"the embeddings are not kept in {path.parent}: {error}", stacklevel=2)
