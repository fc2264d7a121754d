"""Terms that train modules of their own, in a run: optimizer, labels, checkpoints, resume and what is taken away."""

import pytest
from resuming import last
from tiny import TINY

import recipes
from recipes.checkpoints.load import load_checkpoint
from recipes.configuration.problems import ConfigError
from recipes.processes.stop import Stopped
from recipes.running.self_check import differing

SMALL = ["backbone=conv4", "data.limit_train=24", "trainer.max_epochs=2", "evaluator=[]"]
UNTAUGHT = ["teaching=live", "teaching.check=false"]  # a few updates leave a teacher at chance level
TERMS = ["head=dual", "regularizer=[binary_kl_norm,fitnet,crd]", "regularizer.binary_kl_norm.head=auxiliary"]
TERMS += ["regularizer.crd.dim=8", "regularizer.fitnet.stop_epoch=1"]


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    output = tmp_path_factory.mktemp("runs")

    def make(name, *words, channels="[4,8]"):
        common = [*TINY, *SMALL, f"backbone.kwargs.channels={channels}", f"output={output}"]
        return recipes.build("grocery_baseline", [*common, f"name={name}", *words])

    make.output = output
    return make


@pytest.fixture(scope="module")
def teacher(build):
    run = build("teacher", "seed=7", channels="[4,6]")
    run.run()
    return f"teacher={run.directory}"


def test_trained_modules_and_banks_resume_bit_for_bit(build, teacher):
    build("whole", *TERMS, *UNTAUGHT, teacher).run()
    broken = build("broken", *TERMS, *UNTAUGHT, teacher, "stop_after=2")
    with pytest.raises(Stopped):
        broken.run()
    recipes.resume_run(broken.directory, ["stop_after=null"]).run()
    whole, again = (last(build.output, "grocery_baseline", name) for name in ("whole", "broken"))
    assert not (found := [line for line in differing(whole, again) if "config" not in line]), found[:5]
    state = whole["training"]["task"]
    assert (state["parts.regularizers.crd.labels"] >= 0).any()
    assert state["parts.regularizers.crd._extra_state"].tolist() == [True, True], "labels and constants are known"
    taken = load_checkpoint(build.output / "grocery_baseline" / "whole")["network"]
    assert not any("regularizers" in name for name in taken), "the network is without them"


def test_a_batch_that_is_cut_is_refused(build, teacher):
    with pytest.raises(ConfigError, match="CRD is defined on the whole batch, and micro_batches=2 would"):
        build("cut", *TERMS, *UNTAUGHT, teacher, "task.micro_batches=2")


def test_a_map_that_cannot_be_reached_is_refused(build, teacher):
    with pytest.raises(ConfigError, match="- fitnet: the final map of the student is .* its regressor reaches maps"):
        build("far", "regularizer=[fitnet]", *UNTAUGHT, teacher, channels="[4,4,4,8]")


def test_of_several_teachers_there_are_no_features(build, teacher):
    reference = teacher.partition("=")[2]
    with pytest.raises(ConfigError, match="- rkd: it reads features of the view 'teacher/main', and .* gives logits"):
        build("several", "regularizer=[rkd]", *UNTAUGHT, f"teacher=[{reference},{reference}]")
