"""How `BOND` estimates the quantile of a completion's reward under its anchor."""

from keras_bond.quantiles.learned import Learned
from keras_bond.quantiles.monte_carlo import MonteCarlo

__all__ = ["Learned", "MonteCarlo"]
