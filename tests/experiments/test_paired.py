"""Paired differences and their bootstrap intervals."""

import numpy as np
import pytest

from smartcs.experiments.paired import _t_quantile, paired_differences
from smartcs.training.metrics import accuracy, pearson, score

N = {"sst": 300, "qqp": 500, "sts": 200}


@pytest.fixture
def labels():
    generator = np.random.default_rng(0)
    return {
        "sst": generator.integers(5, size=N["sst"]),
        "qqp": generator.integers(2, size=N["qqp"]).astype(np.float32),
        "sts": generator.random(N["sts"]).astype(np.float32) * 5,
    }


def runs(labels, quality, count, seed):
    """Predictions that are right about that often."""
    generator = np.random.default_rng(seed)
    return [
        {
            "sst": np.where(generator.random(N["sst"]) < quality, labels["sst"], generator.integers(5, size=N["sst"])),
            "qqp": np.where(generator.random(N["qqp"]) < quality, labels["qqp"], 1 - labels["qqp"]),
            "sts": labels["sts"] + generator.normal(size=N["sts"]) / quality,
        }
        for _ in range(count)
    ]


def figures(run, labels):
    values = {
        "sst_accuracy": accuracy(run["sst"], labels["sst"]),
        "qqp_accuracy": accuracy(run["qqp"], labels["qqp"]),
        "sts_pearson": pearson(run["sts"], labels["sts"]),
    }
    return {**values, "score": score(values)}


@pytest.mark.parametrize("count", [1, 3])
def test_means_are_the_differences_of_the_figures(labels, count):
    ours, others = runs(labels, 0.7, count, 1), runs(labels, 0.6, count, 2)
    found = paired_differences(ours, others, labels, draws=1200)
    a, b = ([figures(run, labels) for run in system] for system in (ours, others))
    assert set(found) == set(a[0])
    for name, difference in found.items():
        expected = np.mean([x[name] - y[name] for x, y in zip(a, b, strict=True)])
        assert difference.mean == pytest.approx(expected, abs=1e-12) and difference.seeds == count
        assert difference.low < difference.mean < difference.high and len(difference.each) == count
        assert difference.clear == (count > 1 and (difference.low > 0 or difference.high < 0))


def test_the_interval_of_one_seed_is_that_of_the_examples(labels):
    """Against a bootstrap of the plain kind, written out."""
    ours, others = runs(labels, 0.7, 1, 3)[0], runs(labels, 0.65, 1, 4)[0]
    found = paired_differences([ours], [others], labels, draws=4000)
    generator = np.random.default_rng(9)
    for name, task, figure in (("sst_accuracy", "sst", accuracy), ("sts_pearson", "sts", pearson)):
        drawn = []
        for _ in range(2000):
            rows = generator.integers(N[task], size=N[task])
            right = labels[task][rows]
            drawn.append(figure(ours[task][rows], right) - figure(others[task][rows], right))
        low, high = np.percentile(drawn, [2.5, 97.5])
        width = high - low
        assert found[name].low == pytest.approx(low, abs=0.08 * width)
        assert found[name].high == pytest.approx(high, abs=0.08 * width)


def test_the_same_examples_are_drawn_for_both(labels):
    """Of two systems that are wrong on the same examples the difference does not vary, though both figures do."""
    ours = runs(labels, 0.7, 1, 5)
    others = [{**ours[0], "sst": ours[0]["sst"].copy()}]
    found = paired_differences(ours, others, labels, draws=500)
    assert all(difference.low == difference.high == 0 for difference in found.values())
    independent = paired_differences(ours, runs(labels, 0.7, 1, 6), labels, draws=500)
    assert independent["sst_accuracy"].high - independent["sst_accuracy"].low > 0.05


def test_seeds_that_disagree_widen_the_interval(labels):
    """The same mean over three seeds, once without and once with differences between them."""
    base = runs(labels, 0.6, 1, 7)[0]
    better = {**base, "sst": labels["sst"]}
    calm = paired_differences([better] * 2, [base] * 2, labels, draws=2000)["sst_accuracy"]
    wild = paired_differences([better, base], [base, base], labels, draws=2000)["sst_accuracy"]
    assert wild.mean == pytest.approx(calm.mean / 2)
    assert wild.high - wild.low > 3 * (calm.high - calm.low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Two systems that are equally good, one seed: 95 % of the intervals hold zero."""
    generator, covered = np.random.default_rng(11), 0
    for _ in range(200):
        right = {"sst": generator.integers(5, size=200)}
        pair = [{"sst": np.where(generator.random(200) < 0.6, right["sst"], (right["sst"] + 1) % 5)} for _ in range(2)]
        found = paired_differences(pair[:1], pair[1:], right, draws=300)["sst_accuracy"]
        covered += found.low <= 0 <= found.high
    assert 0.90 <= covered / 200 <= 0.99


def test_three_seeds_that_differ_are_covered_too():
    """Two systems that are equally good but for what each seed does to them: more than the examples do."""
    generator, covered = np.random.default_rng(12), 0
    right = {"sst": generator.integers(5, size=300)}

    def run():
        wrong = generator.random(300) > 0.6 + generator.normal() * 0.05
        return {"sst": np.where(wrong, (right["sst"] + 1) % 5, right["sst"])}

    for _ in range(200):
        pairs = [(run(), run()) for _ in range(3)]
        found = paired_differences([a for a, _ in pairs], [b for _, b in pairs], right, draws=200)["sst_accuracy"]
        covered += found.low <= 0 <= found.high
    assert covered / 200 >= 0.92


@pytest.mark.parametrize(("freedom", "point"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (9, 2.2622), (100, 1.9840)])
def test_students_quantiles(freedom, point):
    assert _t_quantile(freedom) == pytest.approx(point, rel=2e-4)


def test_constant_predictions_have_no_correlation(labels):
    flat = [{"sts": np.full(N["sts"], 2.0)}]
    ours = [{"sts": labels["sts"].astype(np.float64)}]
    found = paired_differences(ours, flat, {"sts": labels["sts"]}, draws=200)
    assert set(found) == {"sts_pearson"} and found["sts_pearson"].mean == pytest.approx(1)


def test_messages(labels):
    ours = runs(labels, 0.7, 2, 1)
    assert paired_differences([], [], labels) == {}
    with pytest.raises(ValueError, match="2 runs of ours, 1 of the other, expected as many"):
        paired_differences(ours, ours[:1], labels)
    short = [{**run, "sst": run["sst"][:-1]} for run in ours]
    with pytest.raises(ValueError, match="run 2 has 299 predictions of sst, expected 300"):
        paired_differences(ours, short, labels)
