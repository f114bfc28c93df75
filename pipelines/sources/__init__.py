"""Where events come from: each source is a PTransform that gives batches of raw records."""

DAY_US = 86_400_000_000  # all periods of aggregates end at the end of a day
# Days of event time that files hand on at once. It changes no result; a shard holds this much at a time.
SLICE_US = 30 * DAY_US
