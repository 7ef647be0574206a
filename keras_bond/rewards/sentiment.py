"""VADER sentiment: a fast, rule-based reward that needs no model."""

import keras

from keras_bond.rewards.reward import Reward


@keras.saving.register_keras_serializable("keras_bond")
class VaderSentiment(Reward):
    """VADER's compound sentiment of the completion, in [-1, 1]; text without a word of its lexicon scores exactly 0.

    About 0.1 ms a text. The compound grows with the number of positive words, so a policy that is left alone learns to
    praise at length: a reward to learn on, and a lesson in reward hacking.

    Raises:
        ImportError: if `vaderSentiment` is not installed.

    Example:

    >>> good, bad = VaderSentiment()(["It was", "It was"], [" a great success.", " a terrible loss."])
    >>> good > 0 > bad
    True

    Source: Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis", ICWSM 2014.
    """

    def __init__(self):
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ImportError as error:
            raise ImportError(
                "`VaderSentiment` needs the package `vaderSentiment`: pip install 'keras-bond[experiments]'"
            ) from error
        self._analyzer = SentimentIntensityAnalyzer()

    def __call__(self, prompts, completions, **columns):
        return [self._analyzer.polarity_scores(text)["compound"] for text in completions]
