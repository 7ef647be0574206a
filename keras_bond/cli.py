"""The command line: thin calls into the package."""

import argparse
import importlib.util
import math
import os
import pathlib
import sys
import time

BACKENDS = ("jax", "tensorflow", "torch")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: {_line(message)}\n")


def _line(message):
    return " ".join(str(message).splitlines())


def _at_least(least):
    def integer(text):
        if not text.lstrip("-").isdigit() or not least <= int(text) < 2**32:
            raise argparse.ArgumentTypeError(f"expected an integer of at least {least} and below 2**32, received {text}")
        return int(text)

    return integer


def _temperature(text):
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, received {text}")
    return value


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
    evaluate = commands.add_parser("evaluate", help="one model against another: reward, win rate, KL, with 95 % intervals")
    evaluate.add_argument("policy", metavar="PRESET", help="tiny_gemma, a preset's folder or the name of a KerasHub preset")
    evaluate.add_argument("--reference", required=True, metavar="PRESET", help="what it is measured against, likewise")
    evaluate.add_argument("--reward", required=True, metavar="NAME", help="vader, or module:attribute from this folder")
    evaluate.add_argument(
        "--prompts", required=True, metavar="FILE", help="a prompt a line, or .csv or .jsonl with a column `prompt`"
    )
    evaluate.add_argument("--output", type=pathlib.Path, metavar="DIR", help="folder for evaluation.json and samples.csv")
    for flag, metavar, least, default, text in (
        ("num-samples", "K", 1, 1, "of the policy, per prompt"),
        ("num-reference-samples", "K", 1, 4, "of the reference, per prompt"),
        ("best-of-n", "N", 2, None, "estimate the KLs to Best-of-N too; take 32 reference samples"),
        ("batch-size", "B", 1, 64, "prompts a compiled call"),
        ("max-prompt-length", "P", 1, 64, "tokens"),
        ("max-completion-length", "T", 1, 32, "tokens"),
        ("seed", "S", 0, 0, ""),
    ):
        text = f"{text} (default: %(default)s)".lstrip()
        evaluate.add_argument(f"--{flag}", type=_at_least(least), default=default, metavar=metavar, help=text)
    evaluate.add_argument("--temperature", type=_temperature, default=1.0, help="(default: %(default)s)")
    evaluate.add_argument(
        "--backend", default=os.environ.get("KERAS_BACKEND", "jax"), help="jax, tensorflow or torch (default: %(default)s)"
    )
    evaluate.set_defaults(call=_evaluate)
    benchmark = commands.add_parser(
        "benchmark",
        help="tasks of lm-evaluation-harness: GPQA, GSM8K, MATH, BBH, or your own",
        epilog="In the harness, which downloads their data, GPQA is gpqa_main_zeroshot, GSM8K is gsm8k_cot_zeroshot, MATH "
        "is hendrycks_math and BBH is bbh_zeroshot; `lm_eval ls tasks` lists all that it has.",
    )
    benchmark.add_argument("preset", metavar="PRESET", help="tiny_gemma, a preset's folder or the name of a KerasHub preset")
    benchmark.add_argument(
        "--tasks", required=True, metavar="NAMES", help="with commas between: GPQA, GSM8K, MATH, BBH, names of the harness"
    )
    benchmark.add_argument(
        "--include-path", type=pathlib.Path, metavar="DIR", help="folder with your own tasks, in the harness' format"
    )
    benchmark.add_argument("--output", type=pathlib.Path, metavar="FILE", help="JSON file for the scores")
    for flag, metavar, least, default, text in (
        ("limit", "N", 1, None, "documents a task (default: all)"),
        ("num-fewshot", "K", 0, None, "worked examples in the context (default: the task's own number)"),
        ("batch-size", "B", 1, 8, "rows a compiled call (default: %(default)s)"),
        ("max-length", "T", 1, 8192, "tokens of context and continuation together (default: %(default)s)"),
        ("seed", "S", 0, 0, "of the samples, where a task wants samples (default: %(default)s)"),
    ):
        benchmark.add_argument(f"--{flag}", type=_at_least(least), default=default, metavar=metavar, help=text)
    benchmark.add_argument("--dtype", help="of the weights, such as bfloat16 (default: the preset's own)")
    benchmark.add_argument("--lora", metavar="FILE", help="of `backbone.save_lora_weights`, loaded over the preset")
    benchmark.add_argument(
        "--backend", default=os.environ.get("KERAS_BACKEND", "jax"), help="jax, tensorflow or torch (default: %(default)s)"
    )
    benchmark.set_defaults(call=_benchmark)
    run = commands.add_parser("run", help="one parameterised notebook through papermill")
    run.add_argument("notebook", metavar="NOTEBOOK", help="a file, or the name of one in ./notebooks: 01_quickstart")
    run.add_argument(
        "-p",
        dest="parameters",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a parameter of the notebook, as often as there are some: -p profile smoke",
    )
    run.add_argument(
        "--output", type=pathlib.Path, required=True, metavar="DIR", help="folder for NOTEBOOK.ipynb and run.json"
    )
    run.add_argument(
        "--backend", default=os.environ.get("KERAS_BACKEND", "jax"), help="jax, tensorflow or torch (default: %(default)s)"
    )
    run.set_defaults(call=_run)
    sweep = commands.add_parser("sweep", help="a grid with seeds over a notebook; the same command goes on after a kill")
    sweep.add_argument("spec", metavar="SPEC", help="a YAML file: name, notebook, parameters, grid, seeds, findings")
    sweep.add_argument("--output", type=pathlib.Path, required=True, metavar="DIR", help="folder of this sweep alone")
    sweep.add_argument("--jobs", type=_at_least(1), default=1, metavar="N", help="cells at a time (default: %(default)s)")
    sweep.add_argument("--rerun", action="store_true", help="run cells again whose notebook or keras_bond was another")
    sweep.add_argument(
        "--backend", default=os.environ.get("KERAS_BACKEND", "jax"), help="jax, tensorflow or torch (default: %(default)s)"
    )
    sweep.set_defaults(call=_sweep)
    fit = commands.add_parser("fit", help="a run from a YAML file; the same command goes on after a kill")
    fit.add_argument(
        "spec", metavar="SPEC", help="a YAML file: preset, prompts, reward, steps, and what else there is to say"
    )
    fit.add_argument("--output", type=pathlib.Path, required=True, metavar="DIR", help="folder of this run alone")
    fit.add_argument("--dry-run", action="store_true", help="say what would run and what it takes; write nothing")
    fit.add_argument(
        "--backend", default=os.environ.get("KERAS_BACKEND", "jax"), help="jax, tensorflow or torch (default: %(default)s)"
    )
    fit.set_defaults(call=_fit)
    scale = commands.add_parser(
        "scale", help="compiles J-BOND's step for a TPU topology without one: memory, FLOPs, fits or not"
    )
    scale.add_argument("--preset", required=True, metavar="NAME", help="gemma_2b, gemma2_9b, ...; or a KerasHub preset")
    scale.add_argument("--topology", required=True, metavar="CHIPS", help="such as v5e:2x4")
    for flag, metavar, default, text in (
        ("lora", "R", None, "LoRA's rank (default: full fine-tuning)"),
        ("batch", "B", 128, "prompts a step (default: %(default)s)"),
        ("microbatch", "B", None, "prompts whose activations are in memory at a time (default: all)"),
        ("sampling-batch", "B", None, "prompts that are sampled at a time (default: all)"),
        ("prompt-length", "P", 256, "tokens (default: %(default)s)"),
        ("completion-length", "T", 256, "tokens (default: %(default)s)"),
        ("model-chips", "M", None, "chips that share a copy of the weights (default: the topology's last number)"),
    ):
        scale.add_argument(f"--{flag}", type=_at_least(1), default=default, metavar=metavar, help=text)
    dtypes = ("bfloat16", "mixed_bfloat16", "float32")  # mixed: float32 weights, for full fine-tuning with small steps
    scale.add_argument("--dtype", choices=dtypes, default=dtypes[0], help="(default: %(default)s)")
    scale.set_defaults(call=_scale)
    report = commands.add_parser("report", help="a sweep's page: verdicts, tables with intervals, plots with the frontier")
    report.add_argument("folder", type=pathlib.Path, metavar="DIR", help="what `keras-bond sweep` wrote")
    report.set_defaults(call=_report)
    return parser


def _choose_backend(parser, name):
    """Set the backend; must come before Keras is imported."""
    if name not in BACKENDS:
        parser.error(f"argument --backend: expected one of {', '.join(BACKENDS)}, received {name!r}")
    if importlib.util.find_spec(name) is None:
        parser.error(f"argument --backend: {name} is not installed: pip install 'keras-bond[{name}]'")
    os.environ["KERAS_BACKEND"] = name
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _check_output(parser, output):
    if output.exists() and not output.is_dir():
        parser.error(f"argument --output: expected a folder, {output} is a file")


def _check_packages(parser, command, extra, *packages):
    for package in packages:
        if importlib.util.find_spec(package) is None:
            parser.error(f"{command} needs {package}: pip install 'keras-bond[{extra}]'")


def _demo(parser, arguments, started):
    _choose_backend(parser, arguments.backend)
    _check_packages(parser, "demo", "experiments", "matplotlib", "vaderSentiment")
    _check_output(parser, arguments.output)
    from keras_bond.experiments import demo

    demo.run(arguments.output, arguments.steps, arguments.seed, arguments.prompts, started=started)


def _evaluate(parser, arguments, started):
    _choose_backend(parser, arguments.backend)
    if arguments.output is not None:
        _check_output(parser, arguments.output)
    from keras_bond.experiments import evaluate

    settings = {name: value for name, value in vars(arguments).items() if name not in ("command", "call", "backend")}
    try:
        evaluate.run(**settings, started=started)
    except ValueError as error:  # about an argument, by the convention of the house: a failed run is another error
        parser.error(error)


def _benchmark(parser, arguments, started):
    _choose_backend(parser, arguments.backend)
    _check_packages(parser, "benchmark", "benchmark", "lm_eval")
    if arguments.output is not None and arguments.output.is_dir():
        parser.error(f"argument --output: expected a file, {arguments.output} is a folder")
    from keras_bond.experiments.quiet import quiet

    with quiet():  # TensorFlow, when it is imported
        from keras_bond.experiments import benchmark

    settings = {name: value for name, value in vars(arguments).items() if name not in ("command", "call", "backend")}
    settings["tasks"] = [name.strip() for name in arguments.tasks.split(",") if name.strip()]
    try:
        benchmark.run(**settings, started=started)
    except ValueError as error:
        parser.error(error)


def _run(parser, arguments, started):
    _choose_backend(parser, arguments.backend)
    _check_packages(parser, "run", "notebooks", "papermill", "ipykernel")
    _check_output(parser, arguments.output)
    from keras_bond.experiments import run, values

    parameters: dict = {}
    for name, text in arguments.parameters:
        if name in parameters:
            parser.error(f"argument -p: expected each parameter once, received {name!r} twice")
        parameters[name] = values.read(text.removeprefix(_SHIELD))
    try:
        run.run(arguments.notebook, arguments.output, parameters, started=started)
    except ValueError as error:
        parser.error(error)


def _sweep(parser, arguments, started):
    _choose_backend(parser, arguments.backend)
    _check_packages(parser, "sweep", "notebooks", "papermill", "ipykernel", "joblib", "yaml", "filelock")
    _check_output(parser, arguments.output)
    from keras_bond.experiments import sweep

    try:
        sweep.run(arguments.spec, arguments.output, arguments.jobs, rerun=arguments.rerun)
    except ValueError as error:
        parser.error(error)


def _fit(parser, arguments, started):
    _choose_backend(parser, arguments.backend)
    _check_packages(parser, "fit", "experiments", "yaml")
    _check_output(parser, arguments.output)
    from keras_bond.experiments.quiet import quiet

    with quiet():  # TensorFlow, when it is imported
        from keras_bond.experiments import fit

    try:
        fit.run(arguments.spec, arguments.output, arguments.dry_run, started=started)
    except ValueError as error:
        parser.error(error)


def _scale(parser, arguments, started):
    os.environ["JAX_PLATFORMS"] = "cpu"  # nothing runs on a TPU, and JAX must not look for one
    _choose_backend(parser, "jax")
    _check_packages(parser, "scale", "tpu-compile", "libtpu")
    from keras_bond.scale import report_lines, step_report

    try:
        report = step_report(
            arguments.preset,
            arguments.topology,
            lora_rank=arguments.lora,
            batch_size=arguments.batch,
            microbatch_size=arguments.microbatch,
            sampling_batch_size=arguments.sampling_batch,
            prompt_length=arguments.prompt_length,
            completion_length=arguments.completion_length,
            dtype=arguments.dtype,
            model_chips=arguments.model_chips,
            say=lambda line: print(f"[{time.time() - started:.0f} s] {line}", file=sys.stderr),
        )
    except ValueError as error:
        parser.error(error)
    print(*report_lines(report), sep="\n")


def _report(parser, arguments, started):
    _choose_backend(parser, os.environ.get("KERAS_BACKEND", "jax"))
    _check_packages(parser, "report", "notebooks", "papermill", "jinja2", "matplotlib", "pandas", "scipy")
    from keras_bond.experiments.quiet import quiet

    with quiet():  # TensorFlow, when it is imported
        from keras_bond.experiments import report

    try:
        report.run(arguments.folder)
    except ValueError as error:
        parser.error(error)


_SHIELD = " "


def _shielded(words):
    """`-p NAME VALUE` with any VALUE: argparse takes one that begins with a dash for an option, unless a space is before."""
    words = list(words)
    place = 0
    while "-p" in words[place:-2]:
        place = words.index("-p", place) + 2
        if words[place] not in ("-p", "--output", "--backend", "--help", "-h"):
            words[place] = _SHIELD + words[place]
            place += 1
    return words


def main(argv=None):
    """Entry point of `keras-bond`; exit status 2 for a wrong argument, 1 for a failed run."""
    started = time.time()
    parser = _parser()
    arguments = parser.parse_args(_shielded(sys.argv[1:] if argv is None else argv))
    try:
        arguments.call(parser, arguments, started)
    except KeyboardInterrupt as interrupt:
        sys.exit(": ".join(["keras-bond: interrupted", *map(_line, interrupt.args)]))
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        sys.exit(f"keras-bond: {_line(error)}")


if __name__ == "__main__":
    main()
