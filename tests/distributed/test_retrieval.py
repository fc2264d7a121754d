"""Retrieval in two processes that hold unequal shares with repeated rows: the numbers of one process."""

import pytest
import torch
from processes import together

from lightning_modules.evaluators.retrieval import RetrievalEvaluator

pytestmark = pytest.mark.fault


def rows():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(30, (301,), generator=generator)
    labels[5] = 99  # alone in its class
    centres = torch.randn(30, 8, generator=generator)
    return centres[labels % 30] + torch.randn(301, 8, generator=generator), labels


def shares(rank):
    """A process's rows in any order; some come twice, within a process and in both."""
    torch.distributed.init_process_group("gloo")
    embeddings, labels = rows()
    index = torch.cat([torch.arange(rank, 301, 2), torch.arange(10 + 5 * rank), torch.arange(3)]).flip(0)
    query = torch.arange(301) % 3 == 0
    for keys in ({}, {"full_map": False, "ties": "expected", "macro": True}, {"rerank": {"k1": 6, "k2": 2}}):
        evaluator = RetrievalEvaluator(**keys)
        one = evaluator(embeddings, labels)
        two = evaluator(embeddings[index], labels[index], index_ids=index * 10)
        assert two == pytest.approx(one, abs=1e-12), keys
        masks = {"is_query": query, "is_gallery": ~query}
        one = evaluator(embeddings, labels, **masks)
        two = evaluator(
            embeddings[index], labels[index], index_ids=index, **{name: mask[index] for name, mask in masks.items()}
        )
        assert two == pytest.approx(one, abs=1e-12), keys
    torch.distributed.destroy_process_group()


def test_two_processes_are_one(tmp_path):
    ended = together(shares, folder=tmp_path)
    assert [process.code for process in ended] == [0, 0], ended[0].text + ended[1].text
