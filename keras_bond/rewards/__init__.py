"""Rewards: anything that scores completions."""

from keras_bond.rewards.reward import Reward, RewardError, call_reward, check_reward
from keras_bond.rewards.sentiment import VaderSentiment

__all__ = ["Reward", "RewardError", "VaderSentiment", "call_reward", "check_reward"]
