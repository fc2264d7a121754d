"""``teacher:`` and ``peer:``: the networks beside the one in training, by reference."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from datamodules.base import ImageData
from datamodules.labels.unicode_form import same_names
from lightning_modules.network import Network
from lightning_modules.part import split_view
from lightning_modules.parts import Parts
from lightning_modules.picked import Picked
from lightning_modules.teaching.base import Teaching
from lightning_modules.teaching.teacher import Teacher
from lightning_modules.teaching.training_images import TrainingImages
from recipes.building.make import build_network, make, without_pretrained
from recipes.building.networks import Reference, is_name, network_of, order_of
from recipes.building.probe import check_takes
from recipes.configuration.validate import group_problems

Part = dict[str, Any]
OTHER_SEED = 0x9E3779B9  # of 32 bits, which are all that a seed counts on the CPU, and far from seeds that people take


class FurtherNetworks:
    """Builds them, and keeps what there is to say.

    Args:
        data: set up.
        seed: of the run.
        resumed: whether the run goes on, so that trained weights come from its checkpoint.

    Attributes:
        networks: by name, for ``Parts``.
        lines: the report.
    """

    def __init__(self, data: ImageData, seed: int, resumed: bool) -> None:
        self.data, self.seed, self.resumed = data, seed, resumed
        self.networks: dict[str, nn.Module] = {}
        self.lines: list[str] = []
        self._why_no_logits = ""

    def add_teacher(self, references: Sequence[str], teaching: Teaching) -> None:
        """A frozen network with the classes of the run, in its order; one with others gives no logits.

        Args:
            references: of one network, or of several whose logits are averaged.
            teaching: how they are looked at.

        Raises:
            ValueError: one does not take the images of the run; several, of which one gives no logits.
        """
        networks, sizes = [], []
        for reference in references:
            found = network_of(reference, "teacher", self.data.channels)
            self._say(f"teacher={reference} (sha256 {found.checksum[:12]}), frozen")
            network = self._with_classes(found) if found.classifies else found.network
            own = (found.preprocessing or {}).get("image_size")
            size = teaching.size(own)
            seen = size or self.data.image_size
            check_takes(network, self.data.channels, seen, key="teacher")
            if own not in (None, seen):
                self._say(f"teacher: made for images of {own} pixels, it sees {seen}")
            elif seen != self.data.image_size:
                self._say(f"teacher: it sees the images of {self.data.image_size} pixels resized to {seen}")
            if "logits" not in network.head.gives and len(references) > 1:
                why = self._why_no_logits or "it has no classifier"
                raise ValueError(
                    f"the logits of several teachers are averaged, and {reference} gives none: {why}; leave it out"
                )
            networks.append(network)
            sizes.append(size)
        self.networks["teacher"] = teaching.teacher(networks, sizes)

    def add_peer(self, reference: str, backbone: Part, surgery: dict[str, Part], head: Part) -> None:
        """A second network to train.

        A name is a new network of that backbone, with the recipe's surgery and head, and its own initialization; with a
        weight tag it has timm's weights. Any other reference starts from its weights, and keeps its head where that has
        the classes of the run.

        Raises:
            ValueError: it does not take the images of the run.
        """
        count = self.data.num_classes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed ^ OTHER_SEED)
            if is_name(reference):
                network = build_network(self._backbone(reference, backbone), surgery, head, count)[0]
                kept = "a new head"
            else:
                found = network_of(reference, "peer", self.data.channels)
                network, fits = found.network.train(), self._keeps_head(found)
                if not fits:
                    network.head = make(head, network.num_features, count, group="head")
                kept = "its own head" if fits else "a new head, because its classes are others"
        check_takes(network, self.data.channels, self.data.image_size, key="peer")
        self._say(f"peer={reference}, trained, with {kept}")
        self.networks["peer"] = network

    def check_read(self, parts: Parts) -> None:
        """Refuse a network that no part reads a view of, and a part that reads logits that mean other classes.

        Raises:
            ValueError: naming the key.
        """
        for name in self.networks:
            if name not in parts.networks_read:
                raise ValueError(
                    f"no part of this run reads a view of the network {name!r}, so that {name}= would change nothing; "
                    f"leave it out, or choose a part that reads {name}/main"
                )
        readers = [name for name, part in parts.named() if "logits" in part.needs and _reads(part.views, "teacher")]
        if self._why_no_logits and readers:
            raise ValueError(
                f"{', '.join(readers)} needs the logits of the teacher, and {self._why_no_logits}; fine-tune it on "
                "this data first and give that run, or take a term of features (rkd, crd, fitnet, nd)"
            )

    def begin_teacher(self, parts: Parts, precision: str) -> None:
        """Let the teacher see who reads it and what it will be shown.

        Args:
            parts: of the run.
            precision: of the trainer.

        Raises:
            ValueError: it cannot teach this.
        """
        data, teacher = self.data, self.networks.get("teacher")
        if not isinstance(teacher, Teacher):
            return
        images = TrainingImages(
            key=partial(data.key, "train"),
            index=data.train_index,
            augmented=data.augment is not None,
            augmentations=data.augmentations,
            visits=int(data.train_index.bincount().max()) if data.samples_per_class is None else None,
            substituted=data.leaves_out,
            precision=precision,
        )
        self.lines += teacher.begin(parts, images)

    def _backbone(self, name: str, recipes_own: Part) -> Part:
        """The recipe's backbone as it stands where the name is its own, else one of its channels alone."""
        part = recipes_own
        if name != recipes_own.get("name"):
            stated = {"name": name, "pretrained": "." in name}
            part = {"_target_": recipes_own["_target_"], **stated, "in_channels": self.data.channels}
            if problems := group_problems("backbone", part):
                raise ValueError(f"peer={name}: {problems[0]}")
        return without_pretrained(part) if self.resumed else part

    def _keeps_head(self, found: Reference) -> bool:
        if not found.classifies:
            return found.config is not None  # an embedding, to which classes do not matter
        return found.classes is not None and same_names(found.classes, self.data.classes)

    def _with_classes(self, found: Reference) -> Network:
        network, classes = found.network, self.data.classes
        count = network.head.num_classes
        if found.classes is None and count == len(classes):
            self._say(f"teacher: nothing names its {count} classes: they are taken to be the data's, in their order")
            return network
        if found.classes is not None and same_names(found.classes, classes):
            return network
        order = order_of(found.classes, tuple(classes)) if found.classes is not None else None
        if order is not None and count == len(classes):
            self._say("teacher: its classes are put into the order of the data")
            return network.with_head(Picked(network.head, order))
        self._why_no_logits = f"its {count} classes are not the {len(classes)} of the data"
        if found.classes is not None and count == len(classes):
            unknown = next(name for name in classes if order_of(found.classes, (name,)) is None)
            self._why_no_logits += f": {unknown!r} is none of them"
        self._say(f"teacher: it gives features and no logits, because {self._why_no_logits}")
        return network.with_head(Picked(network.head, None))

    def _say(self, line: str) -> None:
        self.lines.append(line)


def _reads(views: Sequence[str], network: str) -> bool:
    return any(split_view(view)[0] == network for view in views)
