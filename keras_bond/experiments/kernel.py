"""A notebook's execution: papermill, on a kernel of this Python, which is asked for the parameters that it really has."""

import ast
import inspect
import json
import os
import tempfile
import warnings

from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbformat.v4 import new_code_cell
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine
from papermill.execute import raise_for_execution_errors, remove_error_markers
from papermill.iorw import load_notebook_node
from papermill.translators import translate_parameters

from keras_bond.experiments.notebook import is_of_parameters
from keras_bond.experiments.values import json_of

SPEC = get_kernel_dict()
START_TIMEOUT, OUTPUT_TIMEOUT = 600, 60
"""Seconds; papermill's own, 60 and 4, are too few where many kernels share the cores."""


def execute(notebook, target, parameters, values, progress=True):
    """Run a notebook from top to bottom, and write it with its outputs.

    Args:
        notebook: `Notebook`.
        target: file; the notebook so far is there all the time.
        parameters: dict, what is set; all else is as the notebook says.
        values: dict; gets the name and the value of each parameter, once its cell and what is set have run: as JSON where
            it is that, or else its `repr`.
        progress: whether there is a bar.

    Raises:
        PapermillExecutionError: if a cell fails.
    """
    node = remove_error_markers(load_notebook_node(notebook.node))
    node.metadata.kernelspec = {"name": "python3", "display_name": SPEC["display_name"], "language": "python"}
    shown = {name: json.loads(json_of(value)) for name, value in parameters.items()}
    node.metadata.papermill |= {"input_path": str(notebook.path), "output_path": str(target), "parameters": shown}
    last = max((i for i, cell in enumerate(node.cells) if is_of_parameters(cell)), default=-1)
    if parameters:
        last += 1
        code = translate_parameters("python3", "python", parameters, "Parameters")
        node.cells.insert(last, new_code_cell(code, metadata={"tags": ["injected-parameters"]}))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the file is not specified", module="papermill")  # a question mark in its name
        node = _Engine.execute_notebook(
            node,
            "python3",
            output_path=str(target),
            progress_bar=progress,
            last=last,
            names=notebook.parameters,
            values=values,
        )
        if node.metadata.papermill.exception:  # and not where a cell is tagged `raises-exception`, and does
            raise_for_execution_errors(node, str(target))


class _Manager(AsyncKernelManager):
    """Of a kernel of this Python, whatever the machine or the notebook call theirs."""

    kernel_spec = KernelSpec(**SPEC)


class _Client(PapermillNotebookClient):
    def __init__(self, nb_man, folder, last, names, values):
        super().__init__(nb_man, startup_timeout=START_TIMEOUT, iopub_timeout=OUTPUT_TIMEOUT, timeout=None)
        self._folder, self._last, self._names, self._values = folder, last, names, values

    def create_kernel_manager(self):
        """With sockets that are files: of many kernels that draw a free port at once, two may draw the same."""
        files = os.name == "posix" and len(os.fsencode(self._folder)) < 80  # the system allows about 100 bytes
        self.km = _Manager(
            kernel_name="python3",
            connection_file=os.path.join(self._folder, "kernel.json"),
            transport="ipc" if files else "tcp",
        )
        return self.km

    def papermill_execute_cells(self):
        try:
            super().papermill_execute_cells()
        except BaseException:  # such as Ctrl-C: the kernel is at work, and would not hear that it is to end
            self.shutdown_kernel = "immediate"
            raise

    def execute_cell(self, cell, cell_index, **keywords):
        done = super().execute_cell(cell, cell_index, **keywords)
        if cell_index == self._last:
            self._values.update(self._asked())
        return done

    def _asked(self):
        """What Jupyter's `user_expressions` are for: they are evaluated, and leave nothing in the notebook."""
        define = f"__import__('builtins').exec({inspect.getsource(json_of)!r}, here)"
        code = f"(lambda here, it: {define} or here['json_of'](it))({{}}, NAME)"
        asked = {name: code.replace("NAME", name) for name in self._names}
        answers = self.wait_for_reply(self.kc.execute("", silent=True, user_expressions=asked))["content"][
            "user_expressions"
        ]
        there = {name: answer["data"]["text/plain"] for name, answer in answers.items() if answer["status"] == "ok"}
        return {name: json.loads(ast.literal_eval(text)) for name, text in there.items()}


class _Engine(Engine):
    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, log_output, **asked):
        with tempfile.TemporaryDirectory(prefix="keras_bond-") as folder:
            _Client(nb_man, folder, **asked).execute()
