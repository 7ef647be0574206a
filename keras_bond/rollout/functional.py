"""Models as functions of their weights: one compiled program serves policy, anchor and reference."""

import concurrent.futures
import functools
import threading
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_bond.rollout.devices import compiled


class Weights(NamedTuple):
    """Values for a model's variables.

    trainable: list of tensors, one per trainable variable (for an anchor: its float32 shadows).
    frozen: list of tensors, one per non-trainable variable, or empty: then the model's own are used in place.
    """

    trainable: list[Any]
    frozen: list[Any]


def weights_of(model, trainable=None):
    """The present weights of `model`, or those with `trainable` in place of its trainable variables.

    On JAX a compiled program must be given every weight as an argument. TensorFlow and Torch read variables by reference,
    so there the frozen ones (with LoRA: nearly all) stay where they are.
    """
    if trainable is None:
        trainable = [v.value for v in model.trainable_variables]
    # in the variables' own dtypes, so that policy and anchor are one signature, hence one compilation
    trainable = [ops.cast(value, v.dtype) for v, value in zip(model.trainable_variables, trainable, strict=True)]
    frozen = [v.value for v in model.non_trainable_variables] if keras.config.backend() == "jax" else []
    return Weights(trainable, frozen)


def using(model, weights):
    """A `keras.StatelessScope` in which `model` computes with `weights`, cast to its variables' dtypes."""
    return keras.StatelessScope(
        state_mapping=[
            *zip(model.trainable_variables, weights.trainable, strict=True),
            *zip(model.non_trainable_variables, weights.frozen, strict=bool(weights.frozen)),
        ]
    )


class Program:
    """A function of tensors, compiled for the backend in use and without gradients; `traces` counts its compilations.

    JAX: `jax.jit`; TensorFlow: `tf.function` with XLA; Torch: eager, see `Recorded`.

    Args:
        function: of nests of tensors to a nest of tensors.
        donated: the place of an argument whose memory JAX may use for the result: no one may read it afterwards.
    """

    def __init__(self, function, donated=()):
        self.traces = 0

        def traced(*arguments):
            with _TRACING:
                self.traces += 1
                return function(*arguments)

        backend = keras.config.backend()
        if backend == "jax":
            import jax

            self._call = jax.jit(traced, donate_argnums=donated)
        elif backend == "tensorflow":
            self._call = compiled(traced)
        elif backend == "torch":
            import torch

            self._call = torch.no_grad()(function)
        else:
            raise ValueError(f"keras_bond runs on the backends jax, tensorflow and torch. Received: {backend}")

    def __call__(self, *arguments):
        return self._call(*arguments)


_TRACING = threading.RLock()
"""Keras changes a layer while its call is rematerialized: one thread at a time traces."""


def in_threads(function, calls):
    """The results of calls of `function` with these tuples of arguments, at the same time, in threads if there are several.

    JAX computes on a CPU what one thread asks for one after another. What holds for the calling thread alone, such as a
    scope of Keras or `jax.debug_nans` as a context, does not hold in another one.
    """
    if len(calls) == 1:
        return [function(*calls[0])]
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as threads:
        return [*threads.map(lambda arguments: function(*arguments), calls)]


class Recorded:
    """A function of tensors that Torch records once and replays; elsewhere, inside a `Program`, the function as it is.

    Running a small model eagerly, Torch spends most of its time in Keras' Python. This runs the function once for every
    signature (shapes, dtypes and devices of its arguments), on tensors without values, records the operations, and from
    then on runs these alone. Tensors that are not arguments, such as frozen weights, are read where they were when it was
    recorded; arguments may be written to in place. A function that reads a number on the host stays eager (`tolist` of a
    tensor that is no argument goes unseen: it is read once).

    Args:
        function: of nests of tensors to a nest of tensors.
        jit_compile: function without arguments: whether Torch's compiler, Inductor, is to fuse what was recorded. It takes
            minutes for a model of many layers, and a C++ compiler on a CPU.
    """

    def __init__(self, function, jit_compile=lambda: False):
        self._function, self._jit_compile = function, jit_compile
        self._recordings, self._is_recorded = {}, False  # of the last call

    def __call__(self, *arguments):
        if keras.config.backend() != "torch":
            return self._function(*arguments)
        import torch

        tensors = keras.tree.flatten(arguments)
        signature = (self._jit_compile(), *((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors))
        recording = self._recordings[signature] if signature in self._recordings else self._record(arguments)
        result = recording(arguments)
        self._recordings[signature] = recording  # not where an error came of it
        self._is_recorded = isinstance(recording, torch.nn.Module)
        return result

    def repeat(self, unfinished, fixed, state):
        """`ops.while_loop` of state <- self(*fixed, *state), where the first iteration is known to be wanted.

        On a GPU an iteration of a recording is hundreds of small kernels, and Torch would need longer to launch them than
        the GPU to run them: there they are captured once as a CUDA graph, which is launched as a whole.

        Args:
            unfinished: function of the state's tensors: whether there is another iteration.
            fixed, state: sequences of arguments.

        Returns:
            The last state.
        """

        def iterate(*state):
            return self(*fixed, *state)

        if keras.config.backend() == "torch" and keras.tree.flatten(state)[0].is_cuda:
            state = iterate(*state)
            if self._is_recorded and unfinished(*state) and (replay := _captured(iterate, state)):
                while unfinished(*state):
                    replay()
        return ops.while_loop(unfinished, iterate, state)

    def _record(self, arguments):
        import torch
        from torch.fx.experimental.proxy_tensor import make_fx

        def function(arguments):
            return self._function(*arguments)

        def unread(arguments):
            with _no_reading():
                return function(arguments)

        try:
            with keras.StatelessScope():  # variables that are made meanwhile get their values after it
                recording = make_fx(unread, tracing_mode="fake", _allow_non_fake_inputs=True)(arguments)
        except RuntimeError:  # a number was read; an error of another kind comes again
            return function
        return torch.compile(recording, fullgraph=True, dynamic=False) if self._jit_compile() else recording


def _no_reading():
    """A context in which the host cannot read a number of any tensor: what is recorded would keep it for ever."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class NoReading(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            if operation is torch.ops.aten._local_scalar_dense.default:
                raise RuntimeError("A number was read on the host.")
            return operation(*args, **(kwargs or {}))

    return NoReading()


def _captured(iterate, state):
    """A function that runs an iteration, which has run before, as a CUDA graph that writes the state in place.

    `None` where an operation cannot be part of a graph, as one for which the host waits cannot.
    """
    import torch

    graph, device = torch.cuda.CUDAGraph(), keras.tree.flatten(state)[0].device
    try:
        with (
            torch.cuda.device(device),
            torch.cuda.stream(torch.cuda.current_stream(device)),  # back to it, also after an error
            torch.cuda.graph(graph, stream=_capture_stream(device)),  # nothing is computed yet
        ):
            pairs = zip(*map(keras.tree.flatten, (state, iterate(*state))), strict=True)
            moved = [(old, new.clone()) for old, new in pairs if old.data_ptr() != new.data_ptr()]
            for old, new in moved:
                old.copy_(new)
    except RuntimeError:
        return None
    return graph.replay


@functools.cache
def _capture_stream(device):
    """The same for every graph: Torch keeps the workspaces of a stream."""
    import torch

    return torch.cuda.Stream(device)
