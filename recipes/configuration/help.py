"""The text of ``--help``: every recipe with one line each, and every part that can be swapped."""

from __future__ import annotations

from recipes.configuration.catalogue import groups, header, holds_several, options

EXAMPLES = {
    "train.py": """usage: python train.py [recipe=NAME] [key=value ...] [-m]

  python train.py                                     trains recipe=grocery_saf on the embedded photographs
  python train.py recipe=cifar_saf data.root=FOLDER   another recipe, another place for its data
  python train.py recipe=PATH/TO/mine.yaml            a recipe of your own
  python train.py backbone=resnet50 head=cosine optimizer=adamp     swap parts; backbone takes any timm name
  python train.py +regularizer=mesa                   append to the recipe's parts; ~mixing removes
  python train.py trainer.max_epochs=10 seed=1 name=trial
  python train.py -m seed=0,1,2                       one run for each
  python train.py recipe=R stages.probe.seed=1        a word for one stage of a recipe with stages
  python train.py resume=runs/RECIPE/NAME             go on with a run that was interrupted
  python train.py ... max_time=11h30m                 then save and end, with exit code 75
  python train.py ... self_check=true                 does this recipe resume bit for bit?
  python train.py ... --config                        print the resolved configuration and stop
  python train.py ... --traceback                     show where an error was raised
  python train.py --allow my_package loss=my_package.losses.Mine    a part of a package of your own""",
    "evaluate.py": """usage: python evaluate.py checkpoint=PATH [evaluator=NAME] [key=value ...]

  python evaluate.py checkpoint=runs/R/N/checkpoints/best.ckpt                    the test set of its recipe
  python evaluate.py checkpoint=PATH data.root=FOLDER                             the same data from another place
  python evaluate.py checkpoint=PATH evaluator=predict data.root=FOLDER           predictions.csv, without labels
  python evaluate.py query=IMAGE_OR_FOLDER index=FOLDER [k=8]                     the nearest of a saved gallery""",
    "export.py": """usage: python export.py checkpoint=PATH [format=timm] [output=PATH]

  python export.py checkpoint=runs/R/N/checkpoints/best.ckpt        a safetensors file that timm loads""",
}


def help_text(program: str) -> str:
    """Usage, recipes and groups."""
    return "\n\n".join([EXAMPLES[program], *([_recipes(), _groups()] if program == "train.py" else [])])


def _recipes() -> str:
    rows = [(name, header(name)) for name in options("recipe")]
    width = max(len(name) for name, _ in rows)
    lines = [
        f"  {name:<{width}}  {fields.get('what', '')} | {fields.get('data', '')} | {fields.get('expect', '')} | "
        f"{fields.get('cost', '')}"
        for name, fields in rows
    ]
    return "\n".join(["recipes (what | data | expected | cost):", *lines])


def _groups() -> str:
    lines = []
    for group in groups():
        several = " (several: [A,B])" if holds_several(group) else ""
        more = ", any timm model name" if group == "backbone" else ""
        lines.append(f"  {group + several:<28} {', '.join(options(group)) or 'none yet'}{more}")
    return "\n".join(["parts:", *lines])
