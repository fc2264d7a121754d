"""In-Shop Clothes: one list with the role of each image."""

from .pictures import grid, save

QUICK = {"expect": None}


def write(root):
    rows = []
    for label, number in grid():
        role = "train" if label < 4 else ("query", "gallery")[number % 2]
        path = f"img/WOMEN/id_{label}/{number}.png"
        save(root / path, label, number)
        rows.append(f"{path}     id_{label}   {role}\n")
    lines = [f"{len(rows)}\n", "image_name item_id evaluation_status\n", *rows]
    (root / "list_eval_partition.txt").write_text("".join(lines))
