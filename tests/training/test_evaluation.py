"""Evaluation of a split: order, batch size and mode do not matter."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from smartcs.training.evaluation import evaluate
from smartcs.training.setup import build_model, encode_split, load_data


@pytest.fixture
def parts(config):
    settings = config()
    model = build_model(settings)
    return model, encode_split(model, load_data(settings.data).dev, settings.max_length)


def test_figures_equal_a_plain_computation(parts):
    model, dev = parts
    result = evaluate(model, dev, batch_size=5)
    model.eval()
    with torch.inference_mode():
        for name, task in dev.items():
            batch, labels = task.batch(range(len(task)))
            output = model(name, batch)
            if name == "sst":
                assert result.predictions[name].tolist() == output.argmax(-1).tolist()
                assert result.losses[name] == pytest.approx(
                    torch.nn.functional.cross_entropy(output, labels).item(), rel=1e-5
                )
                right = (output.argmax(-1) == labels).float().mean().item()
                assert result.figures["sst_accuracy"] == pytest.approx(right)
            elif name == "qqp":
                assert result.figures["qqp_accuracy"] == pytest.approx(
                    ((output.sigmoid() > 0.5) == labels.bool()).float().mean().item()
                )
            else:
                np.testing.assert_allclose(result.predictions[name], output.numpy(), rtol=1e-4, atol=1e-5)
                expected = np.corrcoef(output.numpy(), labels.numpy())[0, 1]
                assert result.figures["sts_pearson"] == pytest.approx(expected, abs=1e-4)
    assert result.examples == {"sst": 24, "qqp": 24, "sts": 24}


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batch_size_changes_nothing_but_speed(parts, batch_size):
    model, dev = parts
    expected, result = evaluate(model, dev, batch_size=24), evaluate(model, dev, batch_size=batch_size)
    for name in dev:
        np.testing.assert_allclose(result.predictions[name], expected.predictions[name], rtol=1e-4, atol=1e-5)


def test_mode_is_restored_and_dropout_off(parts):
    model, dev = parts
    model.train()
    first, second = evaluate(model, dev), evaluate(model, dev)
    assert model.training
    np.testing.assert_array_equal(first.predictions["sts"], second.predictions["sts"])

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, dev, progress=stop)
    assert model.training


def test_progress_ends_with_the_total(parts):
    model, dev = parts
    calls: list[tuple[int, int]] = []
    evaluate(model, dev, batch_size=10, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (72, 72) and [done for done, _ in calls] == sorted({done for done, _ in calls})


def test_a_task_without_labels_gets_predictions_only(parts):
    model, dev = parts
    result = evaluate(model, {**dev, "qqp": replace(dev["qqp"], labels=None)})
    assert len(result.predictions["qqp"]) == 24
    assert set(result.figures) == {"sst_accuracy", "sts_pearson"} and set(result.losses) == {"sst", "sts"}
