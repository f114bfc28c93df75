"""All 719,307 rows of the Fraud Detection Handbook's transactions, against its own features."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.kit.support import DATA, brute_force, card_fraud, needs_data, run_graph

pytestmark = [pytest.mark.both_sets, pytest.mark.slow]


@needs_data
def test_every_row_has_the_handbooks_features(tmp_path):
    output = run_graph(tmp_path, [str(DATA / "transactions.parquet")], shards=3)
    assert output.outcomes == {"read": 719_307, "scored": 719_307}
    scores = output.scores.sort_by("TRANSACTION_ID")
    source = pq.read_table(DATA / "transactions.parquet").sort_by("TRANSACTION_ID")
    expected = pq.read_table(DATA / "expected_features.parquet").sort_by("TRANSACTION_ID")
    assert scores["TRANSACTION_ID"].equals(expected["TRANSACTION_ID"])
    project = card_fraud()
    same = np.ones(len(scores), bool)
    for name in project.feature_names:
        ours, theirs = scores[name].to_numpy().astype(float), expected[name].to_numpy().astype(float)
        tolerance = 1e-9 if "AVG" in name or "RISK" in name else 0
        same &= np.abs(ours - theirs) <= tolerance  # NaN is not

    # Where two transactions of a customer carry the same second, ours are in the order (event time, event id).
    times, customers = source["TX_DATETIME"].cast(pa.int64()).to_numpy(), source["CUSTOMER_ID"].to_numpy()
    _, place, count = np.unique(np.stack([customers, times]), axis=1, return_inverse=True, return_counts=True)
    tied = count[place] > 1
    assert tied.sum() == 24
    assert not (~same & ~tied).any()
    features = [f for f in project.rolling_features if f.entity == "customer"]
    amounts = source["TX_AMOUNT"].to_numpy()
    for row in np.flatnonzero(tied).tolist():
        near = (customers == customers[row]) & (times <= times[row]) & (times > times[row] - 30 * 86_400_000_000)
        rows = [
            {"entity": 0, "time": int(times[i]), "id": i, "TX_AMOUNT": float(amounts[i])}
            for i in np.flatnonzero(near).tolist()
        ]
        values = brute_force(features, rows, {"TX_AMOUNT": 2})[[r["id"] for r in rows].index(row)]
        assert values == [scores[f.name][row].as_py() for f in features]
