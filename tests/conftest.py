"""Shared by all tests. The backend is Keras' own choice: the environment variable KERAS_BACKEND.

Keras is imported where it is used: of a run in several processes, the one that hands out the tests needs none.
"""

import itertools
import os
import signal
import sys
import tempfile

import numpy as np
import pytest

# Most of the time goes into compiling programs that then run for milliseconds: so XLA optimizes little. Of a flag that is
# there twice the last one counts, which is the user's.
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"
if FLAGS not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()


def pytest_configure(config):
    """On JAX many tests compile the same programs: once for all processes of a session is enough."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:  # the user's, or that of the process which has started this one
        return
    folder = tempfile.TemporaryDirectory(prefix="keras_bond_tests_")
    config.add_cleanup(folder.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


@pytest.fixture(autouse=True, scope="session")
def _tensors_as_on_a_gpu():
    """NumPy cannot read a Torch tensor of a GPU: from here and from our code it can read none, but through Keras."""
    import keras

    if keras.config.backend() != "torch":
        yield
        return
    import torch

    def as_on_a_gpu(function):
        def guarded(*arguments, **named):
            module = sys._getframe(1).f_globals["__name__"]
            if module.startswith(("keras_bond.", "numpy.", "test_")):
                raise TypeError(f"on a GPU, `keras.ops.convert_to_numpy` reads a tensor, and NumPy does not: in {module}")
            return function(*arguments, **named)

        return guarded

    with pytest.MonkeyPatch.context() as patch:
        for name in ("__array__", "numpy"):
            patch.setattr(torch.Tensor, name, as_on_a_gpu(getattr(torch.Tensor, name)))
        yield


@pytest.fixture
def xla_for_cpus():
    """Skips a test of JAX on another device: XLA makes another program there, or multiplies int8 wrongly (see README)."""
    import keras

    if keras.config.backend() == "jax":
        import jax

        if jax.default_backend() != "cpu":
            pytest.skip("is about XLA's programs for CPUs")


@pytest.fixture
def to_numpy():
    from keras import ops

    return ops.convert_to_numpy


@pytest.fixture
def gradient():
    """d fn(x) / dx as an array, for a scalar `fn` of one float32 tensor; 0 where nothing flows."""
    import keras
    from keras import ops

    def grad(fn, x):
        x = ops.convert_to_tensor(np.asarray(x, "float32"))
        backend = keras.config.backend()
        if backend == "jax":
            import jax

            return np.asarray(jax.grad(fn)(x))
        if backend == "tensorflow":
            import tensorflow as tf

            with tf.GradientTape() as tape:
                tape.watch(x)
                y = fn(x)
            return tape.gradient(y, x, unconnected_gradients="zero").numpy()
        x.requires_grad_(True)
        y = fn(x)
        if not y.requires_grad:
            return np.zeros(tuple(x.shape), "float32")
        y.backward()
        return ops.convert_to_numpy(x.grad)

    return grad


@pytest.fixture
def best_of_n():
    """Best-of-n of a categorical distribution, by playing all n-tuples with a uniform draw among the best: float64."""

    def play(probabilities, rewards, n):
        result = np.zeros(len(probabilities))
        for samples in itertools.product(range(len(probabilities)), repeat=n):
            best = [y for y in samples if rewards[y] == max(rewards[y] for y in samples)]
            for y in best:
                result[y] += np.prod([probabilities[i] for i in samples]) / len(best)
        return result

    return play


@pytest.fixture
def interruptible():
    """To be called in a new process: Ctrl-C reaches it, also where a shell has started the tests in its background."""
    return lambda: signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def write_notebook(tmp_path):
    """`write_notebook(name, *cells)` -> path; the first cell is tagged `parameters`."""
    import nbformat

    def write(name, *cells):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
        notebook.cells[0].metadata["tags"] = ["parameters"]
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        path = tmp_path / f"{name}.ipynb"
        nbformat.write(notebook, path)
        return path

    return write
