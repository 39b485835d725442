"""Statistical analyses as pure functions from arrays to dataclasses."""
