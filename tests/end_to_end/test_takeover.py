"""Two runs of other features over one topic and one release log: each event is scored by exactly one of them."""
