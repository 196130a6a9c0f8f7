"""A user may have a name that pandas reads as a missing value; no table loses it."""

import pandas as pd
import pytest

from rpo_kit.runs import open_run
from rpo_kit.study.sweep_tables import read_scores


@pytest.mark.parametrize("name", ["NA", "None", "null", "nan", "N/A", "#N/A", "-nan", "007", "1.0"])
def test_a_users_name_is_a_text_whatever_it_is(tmp_path, name):
    run = open_run("r", "tiny", root=tmp_path)
    folder = run.stage("sweep/sft/scores")
    folder.mkdir(parents=True)
    rows = [{"id": user, "user": user, "shots": 2, "score": 0.5} for user in ("ann", name)]
    pd.DataFrame(rows).to_csv(folder / "scores.csv", index=False)
    scores = read_scores(run, "sft").reset_index()
    assert set(scores["user"]) == set(scores["id"]) == {"ann", name}
    assert scores["score"].tolist() == [0.5, 0.5]
