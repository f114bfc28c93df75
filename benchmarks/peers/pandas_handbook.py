"""Benchmark peer: the card-fraud features the way the Fraud Detection Handbook computes them, with pandas.

    python pandas_handbook.py INPUT.parquet MODEL.ubj OUTPUT.parquet

The method is that of chapter 3, "Baseline feature transformation": one Python function per customer and one
per terminal, applied by groupby().apply(), each with time-based rolling() windows; the delayed terminal
windows are the difference of two windows that both end at the row. The code is written anew. Scores are
xgboost's. As in the handbook, transactions of one customer in one second come in the order sort_values()
leaves them in, and windows sum floats.
"""

import time

STARTED = time.perf_counter()

import json  # noqa: E402  (the clock starts before the imports)
import re  # noqa: E402
import sys  # noqa: E402
from itertools import pairwise  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import xgboost as xgb  # noqa: E402

IMPORTED = time.perf_counter()

THREADS = 2  # of xgboost; pandas uses one
WINDOWS = (1, 7, 30)  # days
DELAY = 7
COLUMNS = ["TRANSACTION_ID", "TX_DATETIME", "CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT", "TX_FRAUD"]
FEATURES = [
    "TX_DURING_WEEKEND",
    "TX_DURING_NIGHT",
    *(f"CUSTOMER_ID_{kind}_{days}DAY_WINDOW" for days in WINDOWS for kind in ("NB_TX", "AVG_AMOUNT")),
    *(f"TERMINAL_ID_{kind}_{days}DAY_WINDOW" for days in WINDOWS for kind in ("NB_TX", "RISK")),
]
COUNTS = [name for name in FEATURES if "_NB_TX_" in name]
INPUTS = ["TX_AMOUNT", *FEATURES]


def is_weekend(moment: pd.Timestamp) -> int:
    return int(moment.weekday() >= 5)


def is_night(moment: pd.Timestamp) -> int:
    return int(moment.hour <= 6)


def get_customer_spending_behaviour_features(transactions: pd.DataFrame) -> pd.DataFrame:
    """Of one customer: the number and the average amount of transactions in each window."""
    transactions = transactions.sort_values("TX_DATETIME")
    transactions.index = transactions["TX_DATETIME"]
    for days in WINDOWS:
        rolling = transactions["TX_AMOUNT"].rolling(f"{days}d")
        count = rolling.count()
        average = rolling.sum() / count  # never empty: the transaction itself is in its window
        transactions[f"CUSTOMER_ID_NB_TX_{days}DAY_WINDOW"] = list(count)
        transactions[f"CUSTOMER_ID_AVG_AMOUNT_{days}DAY_WINDOW"] = list(average)
    transactions.index = transactions["TRANSACTION_ID"]
    return transactions


def get_count_risk_rolling_window(transactions: pd.DataFrame) -> pd.DataFrame:
    """Of one terminal: the number of transactions and the share of frauds in each window before the delay."""
    transactions = transactions.sort_values("TX_DATETIME")
    transactions.index = transactions["TX_DATETIME"]
    recent = transactions["TX_FRAUD"].rolling(f"{DELAY}d")
    recent_frauds, recent_count = recent.sum(), recent.count()
    for days in WINDOWS:
        rolling = transactions["TX_FRAUD"].rolling(f"{DELAY + days}d")
        frauds = rolling.sum() - recent_frauds
        count = rolling.count() - recent_count
        transactions[f"TERMINAL_ID_NB_TX_{days}DAY_WINDOW"] = list(count)
        transactions[f"TERMINAL_ID_RISK_{days}DAY_WINDOW"] = list(frauds / count)
    transactions.index = transactions["TRANSACTION_ID"]
    return transactions.fillna(0)  # the risk of an empty window


def add_features(transactions: pd.DataFrame) -> pd.DataFrame:
    transactions["TX_DURING_WEEKEND"] = transactions["TX_DATETIME"].apply(is_weekend)
    transactions["TX_DURING_NIGHT"] = transactions["TX_DATETIME"].apply(is_night)
    by_customer = transactions.groupby("CUSTOMER_ID", group_keys=False)
    transactions = by_customer.apply(get_customer_spending_behaviour_features)
    transactions = transactions.sort_values("TX_DATETIME").reset_index(drop=True)
    by_terminal = transactions.groupby("TERMINAL_ID", group_keys=False)
    transactions = by_terminal.apply(get_count_risk_rolling_window)
    transactions = transactions.reset_index(drop=True).sort_values(["TX_DATETIME", "TRANSACTION_ID"])
    return transactions.astype(dict.fromkeys(COUNTS, "int64"))


def add_scores(features: pd.DataFrame, model: str) -> pd.DataFrame:
    booster = xgb.Booster({"nthread": THREADS}, model_file=model)
    score = booster.inplace_predict(features[INPUTS].to_numpy(dtype="float32"))
    features["score"] = score
    features["decision"] = np.select([score >= 0.8, score >= 0.3], ["block", "review"], "approve")
    identity = ["TRANSACTION_ID", "TX_DATETIME", "CUSTOMER_ID", "TERMINAL_ID"]
    return features[[*identity, *FEATURES, "score", "decision"]]


def peak_rss_mib() -> float:
    """The peak of this process alone: ru_maxrss may be inherited from the process that started it."""
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return round(int(peak[1]) / 1024, 1) if peak else float("nan")


def main(source: str, model: str, output: str) -> None:
    clock = [time.perf_counter()]
    transactions = pd.read_parquet(source, columns=COLUMNS)
    clock.append(time.perf_counter())
    features = add_features(transactions)
    clock.append(time.perf_counter())
    scores = add_scores(features, model)
    clock.append(time.perf_counter())
    scores.to_parquet(output, compression="snappy", index=False, coerce_timestamps="us")
    clock.append(time.perf_counter())
    phases = ("read_s", "features_s", "score_s", "write_s")
    report = {
        "rows": len(scores),
        "import_s": IMPORTED - STARTED,
        **{phase: end - start for phase, (start, end) in zip(phases, pairwise(clock), strict=True)},
        "total_s": clock[-1] - clock[0],
    }
    report = {name: round(value, 4) for name, value in report.items()} | {"peak_rss_mib": peak_rss_mib()}
    print(json.dumps(report))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"usage: python {sys.argv[0]} INPUT.parquet MODEL.ubj OUTPUT.parquet")
    main(*sys.argv[1:])
