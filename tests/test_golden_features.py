"""All 719,307 rows of the Fraud Detection Handbook's transactions, against its own features."""

import numpy as np
import pyarrow.parquet as pq

from tests.support import DATA, brute_force, card_fraud, needs_data, run_graph


@needs_data
def test_every_row_has_the_handbooks_features(tmp_path):
    output = run_graph(tmp_path, [str(DATA / "transactions.parquet")], shards=3)
    assert output.outcomes == {"read": 719_307, "scored": 719_307}
    scores = output.scores.sort_by("TRANSACTION_ID")
    source = pq.read_table(DATA / "transactions.parquet").sort_by("TRANSACTION_ID")
    expected = pq.read_table(DATA / "expected_features.parquet").sort_by("TRANSACTION_ID")
    assert scores["TRANSACTION_ID"].equals(expected["TRANSACTION_ID"])
    project = card_fraud()
    decided_by_ties = np.zeros(len(scores), bool)
    for name in project.feature_names:
        ours, theirs = scores[name].to_numpy().astype(float), expected[name].to_numpy().astype(float)
        tolerance = 1e-9 if "AVG" in name or "RISK" in name else 0
        decided_by_ties |= np.abs(ours - theirs) > tolerance
    # Where two transactions of a customer carry the same second, the order is (event time, event id).
    assert decided_by_ties.sum() == 8
    time, customer = source["TX_DATETIME"].to_numpy(), source["CUSTOMER_ID"].to_numpy()
    features = [f for f in project.rolling_features if f.entity == "customer"]
    for row in np.flatnonzero(decided_by_ties):
        same = np.flatnonzero((customer == customer[row]) & (time <= time[row]))
        assert (time[same] == time[row]).sum() > 1
        rows = [
            {
                "entity": 0,
                "time": int(source["TX_DATETIME"][i].value),
                "id": int(i),
                "TX_AMOUNT": source["TX_AMOUNT"][i].as_py(),
            }
            for i in same.tolist()
        ]
        values = brute_force(features, rows, {"TX_AMOUNT": 2})[same.tolist().index(row)]
        assert values == [scores[f.name][int(row)].as_py() for f in features]
