"""Where events come from: each source is a PTransform that gives batches of raw records."""
