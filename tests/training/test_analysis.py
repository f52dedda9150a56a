"""The analysis of predictions against plain loops and against figures known beforehand."""

import json

import numpy as np
import pytest

from smartcs.training.analysis import STS_BINS, analyse


def by_loops(predicted, truth, classes):
    """Confusion, recall, precision and adjacent errors, one example at a time."""
    confusion = [[0] * classes for _ in range(classes)]
    wrong, adjacent = [0] * classes, [0] * classes
    for guess, label in zip(predicted, truth, strict=True):
        confusion[int(label)][int(guess)] += 1
        if guess != label:
            wrong[int(label)] += 1
            adjacent[int(label)] += abs(int(guess) - int(label)) == 1
    columns = [sum(row[k] for row in confusion) for k in range(classes)]
    return {
        "confusion": confusion,
        "recall": [confusion[k][k] / sum(confusion[k]) if sum(confusion[k]) else None for k in range(classes)],
        "precision": [confusion[k][k] / columns[k] if columns[k] else None for k in range(classes)],
        "adjacent_errors": sum(adjacent) / sum(wrong) if sum(wrong) else None,
        "adjacent_errors_by_class": [adjacent[k] / wrong[k] if wrong[k] else None for k in range(classes)],
    }


@pytest.mark.parametrize("seed", range(5))
def test_classes_as_by_loops(seed):
    generator = np.random.default_rng(seed)
    truth, guesses = generator.integers(0, 5, 200), generator.integers(0, 5, 200)
    # As the data has them: SST classes are integers, QQP labels float32.
    duplicate, claimed = generator.integers(0, 2, 90).astype(np.float32), generator.integers(0, 2, 90)
    found = analyse({"sst": guesses, "qqp": claimed}, {"sst": truth, "qqp": duplicate})
    assert found["sst"] == by_loops(guesses, truth, 5)
    wanted = by_loops(claimed, duplicate, 2)
    assert found["qqp"] == {name: wanted[name] for name in ("confusion", "recall", "precision")}
    assert found["sst"]["confusion"] != np.transpose(found["sst"]["confusion"]).tolist()


def test_a_case_by_hand():
    found = analyse({"sst": np.array([0, 1, 3, 4, 4])}, {"sst": np.array([0, 0, 0, 4, 3])})["sst"]
    assert found["confusion"][0] == [1, 1, 0, 1, 0]
    assert found["recall"] == [1 / 3, None, None, 0.0, 1.0]
    assert found["precision"] == [1.0, 0.0, None, 0.0, 0.5]
    assert found["adjacent_errors"] == 2 / 3
    assert found["adjacent_errors_by_class"] == [0.5, None, None, 1.0, None]


def test_everything_right_or_empty():
    right = analyse({"sst": np.array([2, 2])}, {"sst": np.array([2, 2])})["sst"]
    assert right["adjacent_errors"] is None and right["recall"][2] == 1.0 and right["recall"][0] is None
    none = np.array([])
    found = analyse(dict.fromkeys(("sst", "qqp", "sts"), none), dict.fromkeys(("sst", "qqp", "sts"), none))
    assert found["qqp"] == {"confusion": [[0, 0], [0, 0]], "recall": [None, None], "precision": [None, None]}
    assert found["sst"]["adjacent_errors_by_class"] == [None] * 5
    assert found["sts"]["true_mean"] is None and sum(found["sts"]["predicted"]) == 0


def test_histogram_as_by_loops():
    generator = np.random.default_rng(3)
    truth = np.round(generator.uniform(0, 5, 300) * 5) / 5
    scores = generator.normal(2.5, 2.5, 300).astype(np.float32)
    found = analyse({"sts": scores}, {"sts": truth.astype(np.float32)})["sts"]
    assert found["bins"] == STS_BINS and len(found["true"]) == len(STS_BINS) - 1

    def counts(values):
        bins = [0] * (len(STS_BINS) - 1)
        for value in values:
            clipped = min(max(float(value), 0.0), 5.0)
            bins[next(k for k in range(len(bins)) if STS_BINS[k] <= clipped < STS_BINS[k + 1])] += 1
        return bins

    assert found["true"] == counts(truth) and found["predicted"] == counts(scores)
    assert sum(found["predicted"]) == 300 and scores.min() < 0 and scores.max() > 5
    assert found["predicted_mean"] == pytest.approx(sum(map(float, scores)) / 300, rel=1e-12)


def test_labels_in_steps_of_a_fifth_fill_the_bins_evenly():
    labels = np.arange(26, dtype=np.float32) / 5
    assert analyse({"sts": labels}, {"sts": labels})["sts"]["true"] == [1] * 26


def test_scores_that_are_not_finite():
    found = analyse({"sts": np.array([1.0, np.nan, np.inf])}, {"sts": np.array([1.0, 2.0, 3.0])})["sts"]
    assert sum(found["predicted"]) == 1 and found["predicted_mean"] is None and found["true_mean"] == 2.0


def test_tasks_without_labels_are_left_out():
    guesses = {"sst": np.array([1]), "qqp": np.array([1]), "sts": np.array([1.0])}
    assert list(analyse(guesses, {"sst": None, "qqp": np.array([0.0])})) == ["qqp"]
    assert analyse({}, {"sst": np.array([1])}) == {}


def test_is_json_as_it_stands():
    found = analyse(
        {"sst": np.array([1]), "qqp": np.array([1]), "sts": np.array([1.5], dtype=np.float32)},
        {"sst": np.array([1]), "qqp": np.array([0.0], dtype=np.float32), "sts": np.array([2.0])},
    )
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ({"sst": [0, 1]}, {"sst": [0]}, r"sst predictions have shape \(2,\) and labels \(1,\), expected \(N,\)"),
        ({"sts": [[0.0]]}, {"sts": [[0.0]]}, r"sts predictions have shape \(1, 1\)"),
        ({"sst": [5]}, {"sst": [0]}, "sst predictions hold 5, expected classes from 0 to 4"),
        ({"qqp": [1]}, {"qqp": [0.5]}, "qqp labels hold 0.5, expected classes from 0 to 1"),
        ({"para": [1]}, {}, "unknown tasks para; known: sst, qqp, sts"),
    ],
)
def test_messages(predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        analyse(predictions, labels)
