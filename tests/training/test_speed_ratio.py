"""The fused ops must stay faster than their reference: the check that keeps speed from rotting silently.

Only a ratio, taken alternately in one process, means anything on a machine that others use. The cycle is the paper's
(SMART and the Bregman term on SST) on two layers of MiniLM's width, on one thread.
"""

import statistics

import pytest
import torch
from op_harness import threads

import smartcs
from smartcs._extension import extension_status
from smartcs.data.encode import encode
from smartcs.data.sample import sample_folder, sample_tokenizer
from smartcs.training.config import TrainConfig
from smartcs.training.trainer import Trainer

# Time of the reference over time of fused, in medians of 5 turns: 1.98 to 2.30 with AVX-512 (EPYC 9005), 1.37 to 1.40
# where the same CPU is held to AVX2, and 1.18 on another machine. Most of it is that oneDNN's products are faster than
# those of PyTorch's BLAS; where both sides use the BLAS, the products, most of the work, are the same.
LEAST = 1.1
LEAST_WITH_EQUAL_PRODUCTS = 1.05
TURNS = 5
ATTEMPTS = 3
BATCHES = {"batch_sst": 6, "batch_qqp": 10, "batch_sts": 4}


class Cycle:
    """A cycle of the three tasks on one backend, again and again."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        tokenizer = sample_tokenizer()
        data = {task: encode(tokenizer, examples) for task, examples in sample_folder().train.items()}
        settings = {"recipe": "smart-bregman", "data": "none", "model": "none", "cycles": 1000, **BATCHES}
        torch.manual_seed(0)
        config = smartcs.BertConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=384,
            num_hidden_layers=2,
            num_attention_heads=12,
            intermediate_size=1536,
            pooling="mean",
        )
        with smartcs.backend(backend):
            model = smartcs.MultitaskBert(smartcs.BertModel(config))
            self.steps = Trainer(TrainConfig.from_dict(settings), model, data).epoch()

    def __call__(self) -> float:
        """Seconds of the steps, their data included."""
        with smartcs.backend(self.backend):
            return sum(next(self.steps).seconds for _ in range(3))


def median_ratio() -> float:
    """Time of the reference over time of fused, over some turns."""
    fused, reference = Cycle("fused"), Cycle("reference")
    ratios = []
    for turn in range(TURNS + 1):
        if turn % 2:
            slow, fast = reference(), fused()
        else:
            fast, slow = fused(), reference()
        ratios.append(slow / fast)
    return statistics.median(ratios[1:])  # the first turn warms up


@pytest.mark.skipif(not extension_status()[0], reason=f"needs the compiled extension: {extension_status()[1]}")
def test_fused_is_faster_than_the_reference():
    least = LEAST if torch.ops.smartcs.linear_library() == "oneDNN" else LEAST_WITH_EQUAL_PRODUCTS
    found: list[float] = []
    with threads(1):
        for _ in range(ATTEMPTS):
            found.append(median_ratio())
            if found[-1] >= least:
                return
    pytest.fail(
        f"the reference takes {' and '.join(f'{ratio:.2f}' for ratio in found)} times the time of the fused ops, "
        f"expected at least {least}"
    )
