"""What of a training run is written down, so that it can go on where it stopped."""

import h5py
import keras
from keras import ops

_EXTRA = "keras_bond_"


class StateSaving(keras.Model):
    """`save_weights` and `load_weights` of the whole training state, and what Keras' own file format passes over."""

    def save_weights(self, filepath, overwrite=True):
        """Write the whole training state to an HDF5 file: policy, anchor, reference, seeds, optimizer.

        Unlike Keras' own, it keeps LoRA's A and B apart: merged into the kernel they could never be trained again.
        """
        with h5py.File(filepath, "w" if overwrite else "x") as file:
            for group, variables in self._state_variables().items():
                for i, variable in enumerate(variables):
                    value = ops.convert_to_numpy(variable.value)
                    value = value.astype("float32") if value.dtype.kind not in "fiub" else value  # bfloat16
                    file.create_dataset(f"{group}/{i:05d}", data=value).attrs["path"] = variable.path

    def load_weights(self, filepath, **kwargs):
        """Read what `save_weights` wrote into a trainer of the same configuration.

        Raises:
            ValueError: if the file holds other variables than this trainer.
        """
        with h5py.File(filepath, "r") as file:
            state = self._state_variables()
            for group, variables in state.items():
                stored = file.get(group, {})
                if group == "optimizer" and not stored:
                    continue
                shapes = [tuple(stored[key].shape) for key in sorted(stored)]
                if shapes != [tuple(v.shape) for v in variables]:
                    raise ValueError(
                        f"`{filepath}` does not fit this trainer: its {group} has {len(shapes)} variables, this one's has "
                        f"{len(variables)}, or their shapes differ. Make the trainer with the same policy, LoRA rank and "
                        "optimizer."
                    )
            for group, variables in state.items():
                for key, variable in zip(sorted(file.get(group, {})), variables, strict=False):
                    variable.assign(file[group][key][()])

    def save_own_variables(self, store):
        if any(getattr(layer, "lora_enabled", False) for layer in self.policy._flatten_layers()):
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
        groups = {"trainer": self.variables}
        if getattr(self, "optimizer", None) is not None:
            self._build_optimizer()
            groups["optimizer"] = self.optimizer.variables
        return groups

    def get_compile_config(self):
        return {"optimizer": keras.saving.serialize_keras_object(self.optimizer)} if self.compiled else {}

    def compile_from_config(self, config):
        self.compile(keras.saving.deserialize_keras_object(config["optimizer"]))
        self._build_optimizer()
