"""The rows of a batch over devices: `keras.distribution` on JAX, `tf.distribute` on TensorFlow; one device elsewhere."""

import math

import keras


def replicas():
    """The `tf.distribute` strategy in force if it has several replicas; `None` otherwise, and on other backends."""
    if keras.config.backend() != "tensorflow":
        return None
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    return strategy if strategy.num_replicas_in_sync > 1 else None


def spread_rows(value, units=None):
    """A batch with its rows spread over the devices of the distribution in force; as it is where there is none.

    On JAX, inside a compiled program, this asks the compiler to compute it so; on TensorFlow it is a `PerReplica` for
    `compiled`. Rows that the devices do not divide stay together, and so do those of `units`, of several rows each (prompts
    with several completions), that they do not divide.
    """
    units = units or value.shape[0]
    if strategy := replicas():
        import tensorflow as tf

        if units % strategy.num_replicas_in_sync:
            return value
        parts = tf.split(value, strategy.num_replicas_in_sync)
        return strategy.experimental_distribute_values_from_function(lambda context: parts[context.replica_id_in_sync_group])
    distribution = keras.distribution.distribution()
    if distribution is None or units % distribution.num_model_replicas:
        return value
    return keras.distribution.distribute_tensor(value, distribution.get_data_layout(value.shape))


def is_readable(tensor):
    """Whether the host can read the values of an argument of a program: not while it is traced, nor of a `PerReplica`."""
    if keras.config.backend() == "jax":
        import jax

        return not isinstance(tensor, jax.core.Tracer)
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return tf.executing_eagerly() and not replicas()
    return True


def on_cpu(tensor):
    """Whether a program with this argument, which the host can read, runs on a CPU."""
    if keras.config.backend() == "jax":
        import jax

        return jax.default_backend() == "cpu"
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return tensor.device.endswith("CPU:0") and not tf.config.list_logical_devices("GPU")
    return tensor.is_cpu


def on_one_cpu(tensor):
    """Whether programs with this argument run on one CPU, whose cores two of them can share; not on Torch."""
    alone = keras.config.backend() != "torch" and keras.distribution.distribution() is None
    return alone and is_readable(tensor) and on_cpu(tensor)


def fewest_rows(tensor):
    """How many rows of a batch with this argument stay together when others have stopped: fewer would take as long.

    An accelerator then mostly reads the weights. Rows that are spread over several devices stay where they are.
    """
    if keras.distribution.distribution() is not None:
        return math.inf
    return 4 if on_cpu(tensor) else 64


def compiled(function):
    """TensorFlow's `function` of tensors, compiled by XLA; every replica runs it on its rows where an argument is spread.

    Other arguments reach each replica whole. Results are batches too: they come back whole, in the order of the rows.
    """
    import tensorflow as tf

    def compile_here():  # for the device in force, whose copy of a variable it reads
        return tf.function(function, jit_compile=True, autograph=False)

    @tf.function(autograph=False)  # in one graph the replicas run at the same time
    def every_replica(*arguments):
        strategy = tf.distribute.get_strategy()
        results = strategy.run(lambda *arguments: compile_here()(*arguments), arguments)
        return tf.nest.map_structure(lambda rows: tf.concat(strategy.experimental_local_results(rows), 0), results)

    one_device = compile_here()
    per_replica = tf.types.experimental.distributed.PerReplica

    def call(*arguments):
        # tensors, not variables: a trainable and a frozen variable would be two signatures, hence two compilations
        arguments = tf.nest.map_structure(
            lambda value: value if isinstance(value, per_replica) else tf.convert_to_tensor(value), arguments
        )
        spread = any(isinstance(value, per_replica) for value in tf.nest.flatten(arguments))
        return (every_replica if spread else one_device)(*arguments)

    return call


def process_share():
    """(index, count): which part of every batch this process feeds, of how many; (0, 1) where there is one process."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return 0, 1
    return distribution.data_shard_id, min(distribution.num_processes, distribution.num_model_replicas)


def check_rows(rows, what):
    """Raise a `ValueError` unless the devices of the distribution in force divide this many rows."""
    if distribution := replicas():
        devices, name = distribution.num_replicas_in_sync, type(distribution).__name__
    elif distribution := keras.distribution.distribution():
        devices, name = distribution.num_model_replicas, distribution
    else:
        return
    if rows % devices:
        raise ValueError(
            f"{what} must be a multiple of the devices that the batch is spread over, {devices} of {name}. Received: {rows}"
        )
