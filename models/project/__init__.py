"""The declarations of a use case: read, checked, and what follows from them."""
