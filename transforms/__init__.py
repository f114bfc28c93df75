"""The steps of the graph, as PTransforms."""

import transforms.batches  # noqa: F401, its coders are registered whatever step is imported first
