"""Imports without their chatter."""

import contextlib
import io
import os


@contextlib.contextmanager
def quiet():
    """Nothing reaches stderr: for TensorFlow, which tokenizes, and says below Python that it has found no GPU.

    >>> with quiet():
    ...     os.write(2, b"I0000 port.cc:153] oneDNN custom operations are on.")
    51
    """
    saved, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nothing)
