"""Words that make a run on the embedded photographs tiny; each test adds its backbone, its samples and its epochs."""

TINY = [
    "data.batch_size=8",
    "data.limit_test=8",
    "data.val_fraction=0.02",
    "trainer.accelerator=cpu",
    "callback=[]",
]
#: SAF that acts in a few epochs, where its own defaults are made for long runs.
SAF = ["regularizer.saf.lag=1", "regularizer.saf.start_epoch=0"]


def but(words, *changes):
    """Words with others in the place of those for the same keys; a key is said once."""
    keys = {change.partition("=")[0] for change in changes}
    return [*(word for word in words if word.partition("=")[0] not in keys), *changes]
