"""headrace's in-process engine."""
