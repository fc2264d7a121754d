"""The table behind a sweep: settings side by side, over their seeds."""

import json

from scipy.stats import ttest_rel
from tiny import TINY

from recipes.configuration.compose import to_yaml
from recipes.configuration.stages import compose_run
from recipes.running.comparison import comparison
from recipes.running.sweep import expand

ACCURACY = {"0.0": [0.50, 0.52, 0.57], "0.1": [0.51, 0.55, 0.59]}


def finished(job, folder, **metrics):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(compose_run(job)))
    (folder / "status.json").write_text(json.dumps({"state": "finished"}))
    (folder / "results.json").write_text(json.dumps(metrics))


def jobs(tmp_path):
    words = ["recipe=grocery_baseline", f"output={tmp_path}", *TINY, "loss.label_smoothing=0.0,0.1", "seed=0,1,2"]
    return expand(words)


def test_one_row_for_a_setting_and_pairs_by_seed(tmp_path):
    sweep = jobs(tmp_path)
    for number, job in enumerate(sweep):
        smoothing = "0.1" if "loss.label_smoothing=0.1" in job else "0.0"
        test = {"accuracy": ACCURACY[smoothing][number % 3]}
        finished(job, tmp_path / "grocery_baseline" / str(number), test=test, evaluators={"x": {"map@r": 0.5}})
    _, title, first, second, *rest = comparison(sweep)
    assert title.split() == ["test", "accuracy,", "%", "runs", "mean", "sd", "diff", "p"]
    assert first.split() == ["loss.label_smoothing=0.0", "3", "53.00", "3.61"]
    p = ttest_rel(ACCURACY["0.1"], ACCURACY["0.0"]).pvalue
    assert second.split() == ["loss.label_smoothing=0.1", "3", "55.00", "4.00", "+2.00", f"{p:.2g}"]
    assert [line.split()[2:] for line in rest if "smoothing" in line] == [["50.00", "0.00"], ["50.00", "0.00", "+0.00"]]


def test_nothing_to_compare(tmp_path):
    sweep = jobs(tmp_path)
    assert comparison(sweep) == []
    finished(sweep[0], tmp_path / "grocery_baseline" / "a", test={"accuracy": 0.5})
    (tmp_path / "grocery_baseline" / "a" / "status.json").write_text(json.dumps({"state": "running"}))
    finished(sweep[1], tmp_path / "grocery_baseline" / "b", test={"accuracy": 0.5})
    assert comparison(sweep) == [], "one setting alone is no comparison"


def test_the_newest_run_of_the_same_words_counts(tmp_path):
    import os

    sweep = jobs(tmp_path)[::3]
    for number, (name, value) in enumerate([("old", 0.1), ("new", 0.2)]):
        finished(sweep[0], tmp_path / "grocery_baseline" / name, test={"accuracy": value})
        os.utime(tmp_path / "grocery_baseline" / name / "results.json", (number, number))
    finished(sweep[1], tmp_path / "grocery_baseline" / "other", test={"accuracy": 0.3})
    assert [line.split()[-2 if i else -1] for i, line in enumerate(comparison(sweep)[2:])] == ["20.00", "30.00"]
