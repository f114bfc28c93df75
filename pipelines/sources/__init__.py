"""Where events come from: each source is a PTransform that gives batches of raw records."""

# Days of event time that files hand on at once. It changes no result; a shard holds this much at a time.
SLICE_US = 30 * 86_400_000_000
