"""Whether what a teacher once gave for a training image is what it would be shown again."""

from __future__ import annotations

from collections.abc import Iterator

from lightning_modules.part import split_view
from lightning_modules.parts import Parts
from lightning_modules.teaching.training_images import TrainingImages

READ = frozenset({"logits", "features", "norms"})
LIVE = "or compute the teacher in every update with teaching=live"


def check_fit(parts: Parts, teacher: str, images: TrainingImages) -> None:
    """Refuse a run in which rows by (image, augmentation) would be wrong, or of no use.

    Args:
        parts: of the run.
        teacher: name of the network that is kept.
        images: of the run.

    Raises:
        ValueError: all problems at once.
    """
    if problems := [*_of_views(parts, teacher), *_of_images(images)]:
        raise ValueError("these parts cannot work together:\n- " + "\n- ".join(problems))


def read_of(parts: Parts, teacher: str) -> frozenset[str]:
    """What the parts read of the teacher's outputs.

    Raises:
        ValueError: a part that says what is none of them.
    """
    found = frozenset[str]()
    for name, part in parts.named():
        if any(split_view(view)[0] == teacher for view in part.views):
            if unknown := part.reads_of_teacher - READ:
                raise ValueError(
                    f"{name} says that it reads {', '.join(sorted(unknown))} of the teacher; allowed: "
                    f"{', '.join(sorted(READ))}"
                )
            found |= part.reads_of_teacher
    return found


def _of_views(parts: Parts, teacher: str) -> Iterator[str]:
    views = [view for view in parts.views if split_view(view)[0] == teacher]
    if parts.mixing is not None and parts.mixing.at == "input":
        yield (
            "teaching=cached: mixing at the input shows the teacher mixtures of images that never come again, and what "
            f"is kept is of single images; leave it out with ~mixing, {LIVE}"
        )
    for view in views:
        image = split_view(view)[1]
        if image == "adversarial" or (image == "main" and parts.attack is not None):
            yield (
                f"teaching=cached: the attack makes another image of a sample in every update, and {view} shows it to "
                f"the teacher, while what is kept is of the image before; read {teacher}/clean, {LIVE}"
            )
        elif image not in ("main", "clean"):
            yield (
                f"teaching=cached: {view} is another image than that whose index and augmentation are the name of a "
                f"row; read {teacher}/main, {LIVE}"
            )
        if view in parts.maps:
            yield (
                f"teaching=cached: a part reads feature maps of {view}, which are as large as hundreds of rows and are "
                f"not kept; leave the part out, {LIVE}"
            )


def _of_images(images: TrainingImages) -> Iterator[str]:
    if images.augmented and images.augmentations is None:
        yield (
            "teaching=cached: augmentations that never come again (data.augmentations=null) would let every row be "
            f"used once; let them come again with data.augmentations=V, leave them out with data.augment=null, {LIVE}"
        )
    if images.augmented and images.visits is None:
        yield (
            "teaching=cached: an epoch of data.samples_per_class visits a sample any number of times, each with an "
            f"augmentation of its own, so that no file has a row for each; set data.samples_per_class=null, {LIVE}"
        )
    if images.substituted:
        yield (
            "teaching=cached: data.on_unreadable=substitute shows another image in the place of one that cannot be "
            f"read, which only reading tells, so that a row is not of one image; repair the files, {LIVE}"
        )
    if images.precision.startswith("64"):
        yield (
            "teaching=cached: in float64 (trainer.precision) the teacher gives more digits than the rows of a file "
            f"keep, so that training would not be the same; take another precision, {LIVE}"
        )
