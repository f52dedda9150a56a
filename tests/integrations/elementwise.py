"""A classifier small enough to count its passes, and to misbehave in subclasses."""

from types import SimpleNamespace

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput


class Elementwise(nn.Module):
    """A classifier without a matrix product."""

    config = SimpleNamespace(num_labels=2, problem_type=None)

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.words = nn.Embedding(100, 6, dtype=dtype)
        self.weights = nn.Parameter(torch.randn(2, 6, dtype=dtype))
        self.passes = []

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids, attention_mask, labels=None):
        self.passes.append((torch.is_autocast_enabled("cpu"), torch.backends.cuda.matmul.fp32_precision))
        mean = torch.tanh(self.words(input_ids) * attention_mask[..., None]).mean(dim=1)
        logits = (mean[:, None, :] * self.weights).sum(dim=-1)
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)
