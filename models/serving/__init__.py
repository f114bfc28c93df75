"""What an endpoint does with a request, without Beam and without a network."""
