"""How a causal language model is run: families of models that are run fast, and a generic one that runs them all."""

from keras_bond.families.family import Family
from keras_bond.families.gemma import Gemma
from keras_bond.families.generic import Generic
from keras_bond.families.llama import Llama
from keras_bond.families.proof import prove
from keras_bond.families.registry import FAMILIES, of

__all__ = ["FAMILIES", "Family", "Gemma", "Generic", "Llama", "of", "prove"]
