"""Rewards: anything that scores completions."""

from keras_bond.rewards.entailment import Entailment
from keras_bond.rewards.logs import REWARD_LOGS, reward_logs
from keras_bond.rewards.relative import compare, differences, imitated, ranks
from keras_bond.rewards.reward import Reward, RewardError, call_reward, check_reward
from keras_bond.rewards.sentiment import VaderSentiment

__all__ = [
    "REWARD_LOGS",
    "Entailment",
    "Reward",
    "RewardError",
    "VaderSentiment",
    "call_reward",
    "check_reward",
    "compare",
    "differences",
    "imitated",
    "ranks",
    "reward_logs",
]
