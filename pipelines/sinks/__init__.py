"""Where scores and dead letters go."""
