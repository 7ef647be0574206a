"""The state of a run on disk: written whole or not at all, and read without this package."""

from keras_bond.checkpoints.checkpoint import identity_of, latest, restore, save, snapshot, write

__all__ = ["identity_of", "latest", "restore", "save", "snapshot", "write"]
