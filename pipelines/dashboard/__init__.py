"""`headrace dashboard`: sinks, a run that goes on and releases as a page that keeps itself up to date."""
