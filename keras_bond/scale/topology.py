"""TPU topologies that exist on paper: XLA compiles for them on a machine without any."""

import math
import os
import re
from typing import NamedTuple

import keras
import numpy as np


class Chip(NamedTuple):
    """What a chip can do, by its maker's specification."""

    memory: float
    """Bytes of HBM that a program may use."""
    flops: float
    """bfloat16 operations a second."""
    bandwidth: float
    """Bytes a second between HBM and the cores."""


GIB = 2**30
CHIPS = {
    "v5e": Chip(15.75 * GIB, 197e12, 819e9),  # 16 GiB, of which the compiler keeps a quarter
    "v5p": Chip(95 * GIB, 459e12, 2765e9),
    "v6e": Chip(31.25 * GIB, 918e12, 1640e9),
}


def parse_topology(name):
    """(generation, shape) of `v5e:2x4`.

    Raises:
        ValueError: if it is not written so, or of a generation that `CHIPS` does not know.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", name)
    if not match or match[1] not in CHIPS:
        raise ValueError(
            f"`topology` must be one of {', '.join(CHIPS)}, a colon and a shape, such as v5e:2x4. Received: {name!r}"
        )
    return match[1], tuple(int(n) for n in match[2].split("x"))


def device_mesh(topology, model_chips=None):
    """A `keras.distribution.DeviceMesh`, axes `batch` and `model`, over the chips of a topology, none of which is here.

    Args:
        topology: such as `"v5e:2x4"`.
        model_chips: over how many chips the variables are split; by default the last number of the topology.

    Raises:
        ValueError: if the topology is unknown, or `model_chips` does not divide its chips.
    """
    _, shape = parse_topology(topology)
    chips = math.prod(shape)
    model_chips = shape[-1] if model_chips is None else model_chips
    if model_chips < 1 or chips % model_chips:
        raise ValueError(f"`model_chips` must divide the {chips} chips of {topology}. Received: {model_chips}")
    # what the TPU compiler would ask a TPU's host for
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # there is no TPU that two processes could want
    from jax.experimental import topologies

    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except RuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        raise ValueError(f"`topology`: the TPU compiler does not know {topology}: {error}") from error
    return keras.distribution.DeviceMesh((chips // model_chips, model_chips), ("batch", "model"), np.array(devices))
