"""``export.py``: a checkpoint becomes a file that others can load."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from recipes.configuration.boundary import refusing
from recipes.running.directory import run_directory_of


def export_checkpoint(*, checkpoint: str, format: Literal["timm"] = "timm", output: str | None = None) -> list[Path]:
    """Write the evaluated network of a checkpoint, checked against itself on real images before it is kept.

    Args:
        checkpoint: a file, or a run directory.
        format: timm: safetensors in timm's key names, with classes and preprocessing in the metadata.
        output: the file; None writes RUN/export/RECIPE.safetensors.

    Returns:
        The files that were written.

    Raises:
        ConfigError: a checkpoint that cannot be read, an existing output, or a file that differs from the network.
    """
    from recipes.building.make import make_data, rebuild_network
    from recipes.checkpoints.form import check_evaluable
    from recipes.checkpoints.load import load_checkpoint
    from recipes.checkpoints.stored import stored_config, without_download
    from recipes.exporting.export import export_safetensors

    with refusing():
        content = load_checkpoint(checkpoint, check_evaluable)
        where = f"the checkpoint {checkpoint}"
        config = stored_config(content, where)
        network = rebuild_network(config, len(content["classes"]), content["network"], where).eval()
        path = Path(output) if output else _default_path(checkpoint, config["recipe"])
        if path.exists():
            raise FileExistsError(f"{path} exists and is not overwritten; choose another output=")
        path.parent.mkdir(parents=True, exist_ok=True)
        data = make_data({**without_download(config["data"]), "num_workers": 0}, config["seed"])
        written = export_safetensors(
            network,
            path,
            name=network.backbone_name,
            kwargs=network.backbone_kwargs,
            in_channels=network.in_channels,
            classes=content["classes"],
            preprocessing=content["preprocessing"],
            sample_images=next(iter(data.test_dataloader())).image[:16],
        )
    for file in written:
        print(file)
    return written


def _default_path(checkpoint: str, recipe: str) -> Path:
    return run_directory_of(Path(checkpoint)) / "export" / f"{recipe}.safetensors"
