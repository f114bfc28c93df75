"""What an online store holds: what the kernels need of each entity, in tiles of event time."""
