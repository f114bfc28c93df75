"""The endpoint: a project's events by HTTP, scored by what an online store has of their entities."""
