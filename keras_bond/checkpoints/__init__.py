"""The state of a run on disk: written whole or not at all, and read without this package."""

from keras_bond.checkpoints.checkpoint import assign, identity_of, latest, read, restore, save, snapshot, write

__all__ = ["assign", "identity_of", "latest", "read", "restore", "save", "snapshot", "write"]
