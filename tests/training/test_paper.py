"""The paper's figures are consistent with each other, as far as the paper is."""

import pytest

from smartcs.training import paper
from smartcs.training.recipes import RECIPES

ROWS = {
    **paper.DEV,
    **{f"test {name}": row for name, row in paper.TEST.items()},
    **{f"batches {', '.join(map(str, sizes))}": row for sizes, row in paper.BATCH_SIZES.items()},
}


def test_printed_scores_follow_the_formula_but_for_two():
    for name, row in ROWS.items():
        by_formula = (row.sst_accuracy + row.qqp_accuracy + (row.sts_pearson + 1) / 2) / 3
        assert row.score_by_formula() == pytest.approx(by_formula)
        if name in paper.SCORE_SLIPS:
            assert paper.SCORE_SLIPS[name] == (row.score, round(by_formula, 3))
            assert abs(row.score - by_formula) > 0.004
            assert paper.score_slip("Row", row.as_dict()) == (
                f"Row: the paper prints a score of {row.score:.3f}; its own formula gives {by_formula:.3f}."
            )
        else:
            assert abs(row.score - by_formula) < 0.001
            assert paper.score_slip("Row", row.as_dict()) is None
    assert len(ROWS) == 20 and set(paper.SCORE_SLIPS) < set(ROWS)


def test_every_row_has_a_recipe_and_figures():
    for rows in (paper.FIGURE_2, paper.FIGURE_3, paper.FIGURE_8, paper.TEST, paper.TOTAL_HOURS, paper.EPOCH_SECONDS):
        assert set(rows) <= set(paper.DEV)
    assert set(paper.DEV) == set(paper.NAMES) <= set(RECIPES)
    assert set(paper.FIGURE_2) | set(paper.FIGURE_8) == set(paper.DEV)
    assert set(paper.FIGURE_2) == set(paper.TOTAL_HOURS) and set(paper.FIGURE_8) == set(paper.EPOCH_SECONDS)
    assert set(paper.FIGURE_3) == set(paper.TEST)


def test_times_of_the_two_figures_agree():
    both = set(paper.TOTAL_HOURS) & set(paper.EPOCH_SECONDS)
    assert both == {"baseline", "smart", "smart-bregman"}
    for name in both:
        assert paper.TOTAL_HOURS[name] * 3600 == pytest.approx(paper.EPOCHS * paper.EPOCH_SECONDS[name], rel=1e-3)


def test_time_ratio():
    assert paper.time_ratio("smart") == pytest.approx(1.111, abs=1e-3)
    assert paper.time_ratio("smart-bregman") == pytest.approx(1.198, abs=1e-3)
    assert paper.time_ratio("cosine") == pytest.approx(1 - 0.109, abs=1e-3)  # section 6: 10.9 % faster
    assert paper.time_ratio("smart-adv") is None


def test_figure_9_belongs_to_an_accuracy_of_the_paper():
    """The recalls, weighted by the classes of the course's SST dev set, make an accuracy that figure 2 has."""
    assert len(paper.SST_RECALL) == len(paper.SST_PRECISION) == len(paper.SST_CLASSES) == 5
    counts = (142, 314, 196, 281, 168)  # of ids-sst-dev.csv, from negative to positive
    accuracy = sum(count * recall for count, recall in zip(counts, paper.SST_RECALL, strict=True)) / sum(counts)
    assert accuracy == pytest.approx(0.494, abs=1e-3)
    assert paper.DEV["smart-bregman"].sst_accuracy == 0.494
