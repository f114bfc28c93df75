"""Data quality without Beam: what a window's rows look like, what is wrong with them, and how sure that is."""
