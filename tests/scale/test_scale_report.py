import math
import types

import keras
import pytest

if keras.config.backend() != "jax":
    pytest.skip("keras_bond.scale is JAX's", allow_module_level=True)

import jax
from keras_hub import models

from keras_bond import scale
from keras_bond.scale import report as reports
from keras_bond.scale import topology
from keras_bond.scale.table import share_of_shadows, step_seconds, verdict

SMALL = {"num_layers": 2, "hidden_dim": 64, "intermediate_dim": 256, "vocabulary_size": 2048, "head_dim": 16}
BATCH, PROMPT, COMPLETION = 4, 8, 16


def small_report(monkeypatch, **arguments):
    """A report for a chip that is here: this machine's CPU in place of a TPU."""
    mesh = keras.distribution.DeviceMesh((1, 1), ("batch", "model"), jax.devices()[:1])
    monkeypatch.setattr(reports, "device_mesh", lambda name, model_chips: mesh)
    lengths = {"batch_size": BATCH, "prompt_length": PROMPT, "completion_length": COMPLETION}
    return scale.step_report("gemma_2b", "v5e:1x1", **lengths, **SMALL, **arguments)


@pytest.mark.parametrize(
    ("name", "backbone", "preset"),
    [
        ("gemma_2b", models.GemmaBackbone, "gemma_2b_en"),
        ("gemma_7b", models.GemmaBackbone, "gemma_7b_en"),
        ("gemma2_2b", models.GemmaBackbone, "gemma2_2b_en"),
        ("gemma2_9b", models.GemmaBackbone, "gemma2_9b_en"),
        ("gemma3_1b", models.Gemma3Backbone, "gemma3_1b"),
        ("gemma3_4b", models.Gemma3Backbone, "gemma3_4b_text"),
    ],
)
def test_the_configurations_have_the_sizes_that_kerashub_states(name, backbone, preset):
    def parameters(layers):
        policy = scale.abstract(lambda: scale.make_policy(name, num_layers=layers))
        return sum(math.prod(v.shape) for v in policy.variables)

    one, two = parameters(1), parameters(2)  # all layers have the same sizes
    layers = scale.CONFIGURATIONS[name][1]["num_layers"]
    assert one + (layers - 1) * (two - one) == backbone.presets[preset]["metadata"]["params"]


def test_a_report_counts_bytes_and_operations(monkeypatch):
    report = small_report(monkeypatch)
    assert report["trainable"] == report["parameters"]
    state = {
        name: report[f"{name}_bytes"] / report["parameters"] for name in ("policy", "anchor_and_reference", "optimizer")
    }
    assert state == pytest.approx(
        {"policy": 2, "anchor_and_reference": 8, "optimizer": 4}, rel=1e-3
    )  # bfloat16, float32, Adam
    assert report["state_bytes"] / report["parameters"] == pytest.approx(14, rel=1e-3)
    assert {name: p["runs"] for name, p in report["programs"].items()} == {"sample": 1, "score": 2, "update": 1}
    assert report["programs"]["update"]["arguments"] >= report["state_bytes"]

    # two operations a parameter and token, the vocabulary at completions alone; what is no such product comes on top
    table = SMALL["vocabulary_size"] * SMALL["hidden_dim"]

    def products(prompt_tokens, completion_tokens):
        layers = (report["parameters"] - table) * (prompt_tokens + completion_tokens)
        return 2 * (layers + table * completion_tokens)

    once = products(BATCH * PROMPT, BATCH * COMPLETION)
    sampled = products(2 * BATCH * (PROMPT - 1), 3 * BATCH * COMPLETION)  # y ~ pi; y_1, y_2 ~ pi_a from one prefill
    found = {name: program["flops"] for name, program in report["programs"].items()}
    assert found["score"] == pytest.approx(once, rel=0.3)
    assert found["sample"] == pytest.approx(sampled, rel=0.3)
    assert found["update"] > 6 * found["score"]


def test_sampling_a_prompt_at_a_time_is_as_many_operations_in_less_memory(monkeypatch):
    settings = {"dtype": "float32", "programs": ("sample",)}
    reports = (small_report(monkeypatch, sampling_batch_size=size, **settings) for size in (None, 1))
    whole, parts = (report["programs"]["sample"] for report in reports)
    assert parts["flops"] == pytest.approx(whole["flops"], rel=0.02)
    assert parts["temporaries"] < 0.8 * whole["temporaries"]


def test_with_lora_anchor_and_reference_are_small(monkeypatch):
    report = small_report(monkeypatch, lora_rank=1, dtype="float32")
    assert report["anchor_and_reference_bytes"] == 2 * 4 * report["trainable"]
    assert report["policy_bytes"] == 4 * report["parameters"]
    assert share_of_shadows(report) < 0.02
    first, second, _, *rows, _, step, last = scale.report_lines(report)
    assert first.startswith("gemma_2b (")
    assert first.endswith("LoRA 1, float32, on v5e:1x1: 1 chips as batch 1 x model 1")
    assert second == ("batch 4, prompt 8, completion 16 tokens; a chip: 15.75 GiB, 197 TFLOP/s, 819 GB/s")
    assert [row.split()[0] for row in rows] == ["program", "sample", "score", "update"]
    assert len({len(row) for row in rows}) == 1
    assert step.startswith(f"step: {step_seconds(report):.2f} s by the roofline")
    assert last.startswith("fits: ")


def test_what_to_change():
    gib = topology.GIB
    report = {"fits": False, "limit_bytes": 16 * gib, "peak_bytes": 40 * gib, "state_bytes": 10 * gib, "lora_rank": None}
    report["peak_program"] = "update"
    assert verdict(report) == (
        "does not fit: 40.00 of 16.00 GiB a chip; adapt with --lora 8, or take a larger topology or a larger --model-chips, "
        "or lower --microbatch"
    )
    report |= {"lora_rank": 8, "state_bytes": 2 * gib}
    assert verdict(report) == "does not fit: 40.00 of 16.00 GiB a chip; lower --microbatch"
    report["peak_program"] = "sample"
    assert verdict(report) == "does not fit: 40.00 of 16.00 GiB a chip; lower --sampling-batch"


def test_a_program_without_room_says_how_much_it_wants():
    class Program:
        def lower(self):
            return self

        def compile(self):
            raise jax.errors.JaxRuntimeError(self.message)

    program = Program()
    program.message = (
        "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (76.00G) exceeds available HBM (15.75G)"
    )
    assert reports.measure(program).temporaries == 76 * topology.GIB
    program.message = "RESOURCE_EXHAUSTED: something else"
    assert reports.measure(program).temporaries == math.inf
    program.message = "INTERNAL: a bug"
    with pytest.raises(jax.errors.JaxRuntimeError):
        reports.measure(program)


@pytest.mark.parametrize("name", ["v5e", "v5e:", "v5e:8", "v9:2x4", "2x4"])
def test_a_topology_is_a_generation_and_a_shape(name):
    with pytest.raises(ValueError) as error:
        scale.step_report("gemma_2b", name)
    assert str(error.value) == (
        f"`topology` must be one of v5e, v5p, v6e, a colon and a shape, such as v5e:2x4. Received: {name!r}"
    )


def test_a_shape_that_the_compiler_does_not_know(monkeypatch):
    from jax.experimental import topologies

    def refuse(platform, topology_name):
        raise RuntimeError(message)

    for name in ("SKIP_MDS_QUERY", "ACCELERATOR_TYPE", "WORKER_HOSTNAMES"):  # which are set for good
        monkeypatch.setenv(f"TPU_{name}", "")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    monkeypatch.setattr(topologies, "get_topology_desc", refuse)
    message = "INVALID_ARGUMENT: no such shape"
    with pytest.raises(ValueError, match=r"^`topology`: the TPU compiler does not know v5e:7x9: INVALID_ARGUMENT: no such"):
        scale.step_report("gemma_2b", "v5e:7x9")
    message = "INTERNAL: a bug"
    with pytest.raises(RuntimeError, match=message):
        scale.step_report("gemma_2b", "v5e:7x9")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"batch_size": 3}, "`batch_size` must be a multiple of the 2 chips of the batch axis and .* of 3. Received: 3"),
        ({"batch_size": 8, "microbatch_size": 6}, "`microbatch_size` must be .* divide the batch of 8. Received: 6"),
        ({"batch_size": 8, "sampling_batch_size": 1}, "`sampling_batch_size` must be .*. Received: 1"),
    ],
)
def test_every_chip_has_as_many_rows(monkeypatch, sizes, message):
    mesh = types.SimpleNamespace(shape=(2, 4))
    monkeypatch.setattr(reports, "device_mesh", lambda name, model_chips: mesh)
    with pytest.raises(ValueError, match=message):
        scale.step_report("gemma_2b", "v5e:2x4", **sizes)


def test_the_model_axis_must_divide_the_chips():
    with pytest.raises(ValueError, match=r"^`model_chips` must divide the 8 chips of v5e:2x4\. Received: 0"):
        scale.step_report("gemma_2b", "v5e:2x4", model_chips=0)
    with pytest.raises(ValueError, match=r"^`model_chips` must divide the 8 chips of v5e:2x4\. Received: 3"):
        scale.step_report("gemma_2b", "v5e:2x4", model_chips=3)
