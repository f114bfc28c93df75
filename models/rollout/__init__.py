"""Releases: which model bundle scores an event is decided by an append-only log and the event's own time."""
