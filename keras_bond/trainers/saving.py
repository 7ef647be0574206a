"""What of a training run is written down, so that it can go on where it stopped."""

import pathlib

import h5py
import keras
import numpy as np
from keras import ops

_EXTRA = "keras_bond_"


class StateSaving(keras.Model):
    """`save_weights`, `load_weights` and `keras.callbacks.OrbaxCheckpoint` of the whole training state: policy, anchor,
    reference, seeds, optimizer; and what Keras' own file format passes over.

    Unlike in Keras' own formats, LoRA's A and B stay apart: merged into the kernel they could never be trained again.
    """

    def save_weights(self, filepath, overwrite=True):
        """Write the whole training state to an HDF5 file."""
        with h5py.File(filepath, "w" if overwrite else "x") as file:
            for group, values in self.get_state_tree().items():
                for name, value in values.items():
                    value = ops.convert_to_numpy(value)  # one at a time in the host's memory
                    value = value.astype("float32") if value.dtype.kind not in "fiub" else value  # bfloat16
                    file.create_dataset(f"{group}/{name}", data=value)

    def load_weights(self, filepath, **kwargs):
        """Read what `save_weights` or `OrbaxCheckpoint` wrote, its newest step, into a trainer of the same configuration.

        Raises:
            ValueError: if there are other variables than this trainer's; nothing has been changed then.
        """
        if pathlib.Path(filepath).is_dir():
            super().load_weights(filepath)
        else:
            with h5py.File(filepath, "r") as file:
                self.set_state_tree({group: {name: stored[name][()] for name in stored} for group, stored in file.items()})

    def get_state_tree(self, value_format="backend_tensor"):
        """Group -> place in it -> value: names that do not depend, as Keras', on what was made earlier in the process."""
        convert = ops.convert_to_numpy if value_format == "numpy_array" else lambda value: value
        return {
            group: {f"{i:05d}": convert(variable.value) for i, variable in enumerate(variables)}
            for group, variables in self._state_variables().items()
        }

    def set_state_tree(self, state_tree):
        """Assign what `get_state_tree` returned; an optimizer's part may be missing. Before `compile` it waits for that."""
        state, trained = self._state_variables(), ("trainable_variables", "non_trainable_variables")
        waiting = None if self.compiled else state_tree.get("optimizer_variables")
        state = {group: variables for group, variables in state.items() if group in trained or state_tree.get(group)}
        state_tree = {group: [value for _, value in sorted(state_tree.get(group, {}).items())] for group in state}
        for group, variables in state.items():
            if list(map(np.shape, state_tree[group])) != [tuple(v.shape) for v in variables]:
                raise ValueError(
                    f"What is loaded does not fit this trainer: its {group} are {len(state_tree[group])}, this one's "
                    f"{len(variables)}, or their shapes differ. Make the trainer with the same policy, LoRA rank and "
                    "optimizer."
                )
        for group, variables in state.items():
            for variable, value in zip(variables, state_tree[group], strict=True):
                variable.assign(value)
        self._optimizer_state = lambda: waiting

    def give_optimizer_its_state(self):
        """At `compile`: to the optimizer what was loaded before it was there.

        Raises:
            ValueError: if it is another optimizer's.
        """
        waiting = getattr(self, "_optimizer_state", lambda: None)()
        if waiting is not None:
            self.set_state_tree(self.get_state_tree() | {"optimizer_variables": waiting})

    def has_lora(self):
        """Whether the policy has LoRA."""
        return any(getattr(layer, "lora_enabled", False) for layer in self.policy._flatten_layers())

    def save_own_variables(self, store):
        if self.has_lora():
            raise ValueError(
                "`save` cannot hold a policy with LoRA: Keras merges the adapter into the kernel, and the copy could never "
                "be trained on. Use `save_weights`, and `policy.save_to_preset` for the merged result."
            )
        super().save_own_variables(store)
        for i, variable in enumerate(self._unsaved_by_keras()):
            store[f"{_EXTRA}{i}"] = variable

    def load_own_variables(self, store):
        for i, variable in enumerate(self._unsaved_by_keras()):
            variable.assign(store[f"{_EXTRA}{i}"])
        super().load_own_variables({key: store[key] for key in store.keys() if not key.startswith(_EXTRA)})  # noqa: SIM118

    def _unsaved_by_keras(self):
        """State that Keras' file format passes over: seed generators; and what a subclass keeps out of Keras' sight."""
        return [self.policy_seed.state, self.anchor_seed.state]

    def _state_variables(self):
        groups = {
            "trainable_variables": self.trainable_variables,
            "non_trainable_variables": self.non_trainable_variables,
        }
        if getattr(self, "optimizer", None) is not None:
            self._build_optimizer()
            groups["optimizer_variables"] = self.optimizer.variables
        return groups

    def named_state(self):
        """Name -> variable of all that a run changes: what a checkpoint holds. The policy's frozen weights are not in it.

        The names are the same in every process, whatever was made in it before.
        """
        groups = self._state_variables()
        paths = [variable.path for variable in self.policy.trainable_variables]
        shadows = {"anchor": self.anchor} | ({} if self.reference is self.anchor else {"reference": self.reference})
        named = [(f"policy/{v.path}", v) for v in self.policy.trainable_variables]
        for name, anchor in shadows.items():
            named += [(f"{name}/{path}", shadow) for path, shadow in zip(paths, anchor.shadows, strict=True)]
            named.append((f"{name}/updates", anchor.updates))
        named += [
            ("cursor", self.cursor),
            ("seeds/policy", self.policy_seed.state),
            ("seeds/anchor", self.anchor_seed.state),
        ]
        taken = {id(variable) for variable in self.policy.variables} | {id(variable) for _, variable in named}
        rest = {id(v): v for v in (*groups["non_trainable_variables"], *self._unsaved_by_keras()) if id(v) not in taken}
        named += [(f"other/{i:04d}/{v.name}", v) for i, v in enumerate(rest.values())]
        named += [(f"optimizer/{i:04d}/{v.name}", v) for i, v in enumerate(groups.get("optimizer_variables", []))]
        return dict(named)

    def get_compile_config(self):
        return {"optimizer": keras.saving.serialize_keras_object(self.optimizer)} if self.compiled else {}

    def compile_from_config(self, config):
        self.compile(keras.saving.deserialize_keras_object(config["optimizer"]))
        self._build_optimizer()
