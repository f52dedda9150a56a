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
        else:
            assert abs(row.score - by_formula) < 0.001
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
    """Recall and precision of five classes leave little room for the accuracy; it is that of a model of figure 2."""
    assert len(paper.SST_RECALL) == len(paper.SST_PRECISION) == len(paper.SST_CLASSES) == 5
    assert min(paper.SST_RECALL) < paper.DEV["smart-bregman"].sst_accuracy < max(paper.SST_RECALL)
