"""Anchors: the slowly moving copy of the policy whose Best-of-n the policy is distilled towards."""

from keras_bond.anchors.anchor import Anchor, EMAAnchor, FrozenAnchor, PeriodicAnchor

__all__ = ["Anchor", "EMAAnchor", "FrozenAnchor", "PeriodicAnchor"]
