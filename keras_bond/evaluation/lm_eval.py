"""The command line of lm-evaluation-harness with `keras_hub` among its models, for releases that read no entry points.

python -m keras_bond.evaluation.lm_eval --model keras_hub --model_args preset=tiny_gemma --tasks gsm8k
"""

from lm_eval.__main__ import cli_evaluate

from keras_bond.evaluation import harness

__all__ = ["cli_evaluate", "harness"]

if __name__ == "__main__":
    cli_evaluate()
