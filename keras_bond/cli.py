"""The command line: thin calls into the package."""

import argparse
import importlib.util
import os
import pathlib
import sys
import time

BACKENDS = ("jax", "tensorflow", "torch")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def _at_least(least):
    def integer(text):
        if not text.lstrip("-").isdigit() or not least <= int(text) < 2**32:
            raise argparse.ArgumentTypeError(f"expected an integer of at least {least} and below 2**32, received {text}")
        return int(text)

    return integer


def _parser():
    parser = _Parser(prog="keras-bond", description="Best-of-N distillation of language models with Keras.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser, metavar="COMMAND")
    demo = commands.add_parser("demo", help="J-BOND on the bundled model, data and reward: minutes on a CPU")
    demo.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/demo"), help="folder (default: %(default)s)")
    demo.add_argument(
        "--backend", default=os.environ.get("KERAS_BACKEND", "jax"), help="jax, tensorflow or torch (default: %(default)s)"
    )
    demo.add_argument("--steps", type=_at_least(1), default=135, help="updates (default: %(default)s)")
    demo.add_argument("--seed", type=_at_least(0), default=0, help="(default: %(default)s)")
    demo.add_argument("--prompts", type=_at_least(2), default=512, help="held-out prompts (default: %(default)s)")
    demo.set_defaults(call=_demo)
    return parser


def _choose_backend(parser, name):
    """Set the backend; must come before Keras is imported."""
    if name not in BACKENDS:
        parser.error(f"argument --backend: expected one of {', '.join(BACKENDS)}, received {name!r}")
    if importlib.util.find_spec(name) is None:
        parser.error(f"argument --backend: {name} is not installed: pip install 'keras-bond[{name}]'")
    os.environ["KERAS_BACKEND"] = name
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _demo(parser, arguments, started):
    _choose_backend(parser, arguments.backend)
    for package in ("matplotlib", "vaderSentiment"):
        if importlib.util.find_spec(package) is None:
            parser.error(f"demo needs {package}: pip install 'keras-bond[experiments]'")
    if arguments.output.exists() and not arguments.output.is_dir():
        parser.error(f"argument --output: expected a folder, {arguments.output} is a file")
    from keras_bond.experiments import demo

    demo.run(arguments.output, arguments.steps, arguments.seed, arguments.prompts, started=started)


def main(argv=None):
    """Entry point of `keras-bond`; exit status 2 for a wrong argument, 1 for a failed run."""
    started = time.time()
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        arguments.call(parser, arguments, started)
    except KeyboardInterrupt:
        sys.exit("keras-bond: interrupted")
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        sys.exit(f"keras-bond: {error}")


if __name__ == "__main__":
    main()
