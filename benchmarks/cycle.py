"""One training cycle (a batch and an optimizer step of each task) against the reference and Hugging Face's BERT.

    python benchmarks/cycle.py --rounds 15 --threads 2

Same MiniLM-shaped encoder, same heads, sentences, batch sizes (6 / 40 / 4) and AdamW for all; dropout 0.1. The peer is
`transformers.BertModel` on padded batches with PyTorch's own dropout, attention and fused AdamW. Candidates take turns,
cycle by cycle, in one process; printed are the median time and the median of the ratios within a turn, with 20 % and
80 % quantiles. Before anything is timed, all must agree on the losses of the first batches without dropout.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import BertConfig as PeerConfig
from transformers import BertModel as PeerBert

import smartcs
from smartcs.data.encode import EncodedTask, encode
from smartcs.data.packing import PackedBatch
from smartcs.data.sample import sample_folder, sample_tokenizer
from smartcs.model.bert import BertOutput
from smartcs.model.hf_config import config_to_hf
from smartcs.model.weights import state_dict_to_hf
from smartcs.training.metrics import task_loss

BATCHES = {"sst": 6, "qqp": 40, "sts": 4}
SHAPES = {"minilm": (6, 384, 12, 1536), "base": (12, 768, 12, 3072)}


class Peer(torch.nn.Module):
    """Hugging Face's encoder in the place of ours: packed batch in, mean-pooled sentences out."""

    def __init__(self, ours: smartcs.BertModel, attention: str) -> None:
        super().__init__()
        fields = {name: getattr(ours.config, name) for name in ours.config.__dataclass_fields__}
        self.config = ours.config
        self.bert = PeerBert(PeerConfig(**config_to_hf(fields), attn_implementation=attention))
        self.bert.load_state_dict(state_dict_to_hf(ours.state_dict(), fields))

    def forward(self, batch: PackedBatch, dropout_key: object = None, **perturbation: object) -> BertOutput:
        mask = batch.attention_mask()
        out = self.bert(batch.to_padded(), mask, batch.to_padded(batch.token_type_ids))
        weights = mask[:, :, None].to(torch.float32)
        pooled = (out.last_hidden_state * weights).sum(1) / weights.sum(1)
        return BertOutput(out.last_hidden_state, out.pooler_output, pooled)


def encoder(shape: str, vocab_size: int) -> smartcs.BertModel:
    layers, hidden, heads, inner = SHAPES[shape]
    # The real vocabulary's size: the optimizer's time is that of the embedding table.
    return smartcs.BertModel(
        smartcs.BertConfig(
            vocab_size=max(30522, vocab_size),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=inner,
            pooling="mean",
        )
    )


def candidates(shape: str, vocab_size: int) -> dict[str, smartcs.MultitaskBert]:
    """The models, all with the same weights."""
    models = {}
    for name in ("fused", "reference", "transformers eager", "transformers sdpa"):
        torch.manual_seed(0)
        model = smartcs.MultitaskBert(encoder(shape, vocab_size))
        if name.startswith("transformers"):
            model.bert = Peer(model.bert, name.split()[1])  # type: ignore[assignment]
        models[name] = model
    return models


def run_cycle(
    model: smartcs.MultitaskBert, optimizer: torch.optim.Optimizer, data: dict[str, EncodedTask], turn: int
) -> None:
    for task, size in BATCHES.items():
        batch, labels = data[task].batch(range(turn * size, (turn + 1) * size))
        assert labels is not None
        optimizer.zero_grad(set_to_none=True)
        task_loss(task, model(task, batch, smartcs.DropoutKey(1, turn)), labels).backward()
        optimizer.step()


def first_losses(model: smartcs.MultitaskBert, data: dict[str, EncodedTask]) -> Tensor:
    model.eval()
    losses = []
    with torch.inference_mode():
        for task, size in BATCHES.items():
            batch, labels = data[task].batch(range(size))
            assert labels is not None
            losses.append(task_loss(task, model(task, batch), labels))
    model.train()
    return torch.stack(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--shape", choices=SHAPES, default="minilm")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    tokenizer = sample_tokenizer()
    data = {task: encode(tokenizer, examples) for task, examples in sample_folder().train.items()}
    steps: dict[str, Callable[[int], None]] = {}
    expected = None
    for name, model in candidates(arguments.shape, tokenizer.get_vocab_size()).items():
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5, fused=True)

        def step(turn: int, model=model, optimizer=optimizer, name=name) -> None:  # type: ignore[no-untyped-def]
            with smartcs.backend("reference" if name == "reference" else "fused"):
                run_cycle(model, optimizer, data, turn)

        with smartcs.backend("reference" if name == "reference" else "fused"):
            losses = first_losses(model, data)
        if expected is None:
            expected = losses
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
        steps[name] = step

    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(arguments.rounds + 1):
        for name, step in steps.items():
            begin = time.perf_counter()
            step(turn)
            if turn:  # the first round warms up
                times[name].append(time.perf_counter() - begin)

    print(f"{arguments.shape}, {arguments.threads} threads, {arguments.rounds} rounds, torch {torch.__version__}")
    print(f"{'':20} {'ms a cycle':>10}  {'time / fused':>12}")
    for name, values in times.items():
        ratios = [value / fused for value, fused in zip(values, times["fused"], strict=True)]
        low, *_, high = statistics.quantiles(ratios, n=5, method="inclusive")
        middle = statistics.median(ratios)
        print(f"{name:20} {1e3 * statistics.median(values):10.0f}  {middle:6.2f} ({low:.2f} - {high:.2f})")


if __name__ == "__main__":
    main()
