"""Events that no contract takes, and why."""

from tests.kit.support import transaction

BAD = {
    "broken JSON": (b'{"TRANSACTION_ID": 7,', ("(record)", "not JSON")),
    "no object": (b"[1, 2]", ("(record)", "not a JSON object")),
    "missing": ({k: v for k, v in transaction(70).items() if k != "CUSTOMER_ID"}, ("CUSTOMER_ID", "missing")),
    "null": (transaction(71, TERMINAL_ID=None), ("TERMINAL_ID", "missing")),
    "wrong type": (transaction(72, CUSTOMER_ID="x"), ("CUSTOMER_ID", "not a 64-bit integer")),
    "negative": (transaction(73, TX_AMOUNT=-1.0), ("TX_AMOUNT", "below 0")),
    "too much": (transaction(74, TX_AMOUNT=1e7), ("TX_AMOUNT", "above 1000000")),
    "not a time": (transaction(75, TX_DATETIME="yesterday"), ("TX_DATETIME", "not a time")),
    "no such day": (transaction(76, TX_DATETIME="2018-02-30 00:00:00"), ("TX_DATETIME", "not a time")),
    "absurd time": (transaction(77, TX_DATETIME="1917-01-01 00:00:00"), ("TX_DATETIME", "before event.earliest")),
    "far future": (transaction(78, TX_DATETIME="2917-01-01 00:00:00"), ("TX_DATETIME", "not before event.latest")),
    "NaN": (transaction(79, TX_AMOUNT=float("nan")), ("TX_AMOUNT", "not finite")),
    "infinite": (transaction(80, TX_AMOUNT=float("inf")), ("TX_AMOUNT", "not finite")),
    "too large": (transaction(81, NOTE="x" * 70_000), ("(record)", "larger than 65536 bytes")),
    "not UTF-8": (b'{"TRANSACTION_ID": 1, "NOTE": "\xff"}', ("(record)", "not JSON")),
    "too big": (transaction(82, TERMINAL_ID=2**70), ("TERMINAL_ID", "not a 64-bit integer")),
}
