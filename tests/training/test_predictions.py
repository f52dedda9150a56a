"""The course's prediction files, to the letter."""

import numpy as np

from smartcs.training.predictions import write_predictions


def test_files_are_the_courses(tmp_path):
    ids = {"sst": ["a1", "a2"], "qqp": ["b1"], "sts": ["c1"]}
    values = {
        "sst": np.array([3, 0]),
        "qqp": np.array([1]),
        "sts": np.array([2.5], dtype=np.float32),
    }
    paths = write_predictions(tmp_path / "predictions", "dev", ids, values)
    assert [path.name for path in paths] == ["sst-dev-output.csv", "para-dev-output.csv", "sts-dev-output.csv"]
    texts = [path.read_bytes().decode() for path in paths]
    assert texts[0] == "id \t Predicted_Sentiment \na1 , 3 \na2 , 0 \n"
    assert texts[1] == "id \t Predicted_Is_Paraphrase \nb1 , 1.0 \n"
    assert texts[2] == "id \t Predicted_Similiary \nc1 , 2.5 \n"


def test_only_the_tasks_that_are_there(tmp_path):
    paths = write_predictions(tmp_path, "test", {"sts": ["c"]}, {"sts": np.array([0.1])})
    assert [path.name for path in paths] == ["sts-test-output.csv"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["sts-test-output.csv"]
