from dataclasses import replace
from typing import Any

import pytest
import torch

from ftray.config.base import apply, validated
from ftray.config.cluster import ClusterConfig, NodesConfig
from ftray.config.run import RunConfig
from ftray.model import entropy
from ftray.model.shape import BUILTIN_SHAPE, ModelShape
from ftray.train import memory
from ftray.train.choice import Choice, settle
from ftray.train.machine import Machine, this_machine
from ftray.train.memory import GIB, Memory, Worker, estimate, trainable
from ftray.train.plan import Plan, make_plan, worker_of

TREE = {
    "name": "a",
    "data": {"train": "x.jsonl", "max_length": 2048},
    "train": {"max_steps": 100, "global_batch_size": 32},
}
LAPTOP = Machine(cpus=8, memory=32 * GIB)
H100 = Worker("gpu", 1, 76 * GIB, "a test")
ON_CPU = replace(H100, device="cpu")
LLAMA_8B = ModelShape(
    layers=32,
    hidden=4096,
    intermediate=14336,
    heads=32,
    kv_heads=8,
    head_dim=128,
    vocab=128256,
    tied=False,
    linear={
        "self_attn.q_proj": (4096, 4096),
        "self_attn.k_proj": (4096, 1024),
        "self_attn.v_proj": (4096, 1024),
        "self_attn.o_proj": (4096, 4096),
        "mlp.gate_proj": (4096, 14336),
        "mlp.up_proj": (4096, 14336),
        "mlp.down_proj": (14336, 4096),
    },
)


def config(**changes: Any) -> RunConfig:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return validated(RunConfig, apply(TREE, dotted), "test")


def needed(run: RunConfig, micro: int = 1, worker: Worker = H100) -> Memory:
    return estimate(run, LLAMA_8B, worker, micro)


def plan(run: RunConfig, cluster: ClusterConfig | None = None) -> Plan:
    return make_plan(run, BUILTIN_SHAPE, cluster, LAPTOP)


def test_the_global_batch_is_workers_times_micro_times_accumulation():
    batch = plan(config(scaling__num_workers=4, train__micro_batch_size=2)).batch
    assert (batch.workers, batch.micro, batch.accumulation, batch.size) == (4, 2, 4, 32)
    assert batch.max_tokens == 32 * 2048


def test_lora_trains_rank_times_in_plus_out_of_each_target():
    # Llama 3.1 8B at rank 16 on all linear layers: 41,943,040 in PEFT
    assert trainable(config(adapter__rank=16), LLAMA_8B) == 41_943_040
    both = config(adapter__rank=8, adapter__target=["q_proj", "mlp.up_proj"])
    assert trainable(both, LLAMA_8B) == 32 * 8 * (4096 + 4096 + 4096 + 14336)
    assert trainable(config(adapter={"method": "full"}), LLAMA_8B) == LLAMA_8B.parameters


@pytest.mark.parametrize(
    ("changes", "micro", "measured_gib"),
    [
        # One H100, bf16, rank 16, 2048 tokens a row, compiled layers: peak of the allocator.
        ({"train__compile": True}, 4, 50.5),
        ({"train__compile": True, "train__activation_checkpointing": "layer"}, 8, 25.1),
        # One H200, each from its own benchmark row
        ({}, 4, 50.5),
        ({"train__activation_checkpointing": "pointwise"}, 4, 39.9),
        ({"train__activation_checkpointing": "mlp"}, 4, 26.8),
        ({"train__activation_checkpointing": "layer"}, 4, 20.1),
        ({"adapter__base_precision": "fp8"}, 4, 50.5),
        ({"adapter__method": "qlora"}, 4, 40.9),
        ({"adapter__method": "qlora", "train__activation_checkpointing": "layer"}, 4, 10.4),
        ({"adapter__method": "qlora", "train__activation_checkpointing": "layer"}, 2, 8.2),
        ({"train__max_steps": 11}, 4, 61.5),  # too few to be compiled
    ],
)
def test_the_estimate_is_near_what_was_measured(
    changes: dict[str, Any], micro: int, measured_gib: float
):
    found = settle(config(**changes, train__micro_batch_size=micro), LLAMA_8B, H100).memory
    assert found is not None
    assert (found.peak - found.overhead) / GIB == pytest.approx(measured_gib, rel=0.1)


def test_what_saves_memory_lowers_its_own_part():
    plain = needed(config(), 4)
    qlora = needed(config(adapter__method="qlora"), 4)
    checkpointed = needed(config(train__activation_checkpointing="layer"), 4)
    assert qlora.weights == pytest.approx(5.7 * 1e9, rel=0.02)
    same = replace(qlora, weights=plain.weights, loading=plain.loading)
    assert same == plain
    assert checkpointed.activations < plain.activations / 8
    full = {"adapter": {"method": "full"}}
    whole = needed(config(**full)).optimizer  # two fp32 moments
    in_bytes = needed(config(**full, train__optimizer="adamw_8bit")).optimizer
    assert in_bytes == pytest.approx(whole * (1 + 4 / 256) / 4)  # a byte each, a scale for 256


def test_weights_that_are_trained_whole_are_fp32_and_computed_with_in_bf16():
    full = {"adapter": {"method": "full"}}
    found, count = needed(config(**full)), LLAMA_8B.parameters
    assert found.weights == (4 + 2) * count
    assert (found.gradients, found.optimizer, found.loading) == (4 * count, 8 * count, 4 * count)
    assert needed(config(**full, model__dtype="float32")).weights == 4 * count
    eight = needed(config(**full, scaling__num_workers=8), 1, replace(H100, count=8))
    two_layers = 2 * sum(wide * high for wide, high in LLAMA_8B.linear.values())
    outside = count - LLAMA_8B.layers * two_layers // 2
    assert eight.weights == 4 * count // 8 + 2 * (outside + two_layers)  # gathered in bf16


def test_eager_attention_and_dropout_cost_activations():
    plain = needed(config()).activations
    assert needed(config(model__attention="eager")).activations > 2 * plain
    assert needed(config(adapter__dropout=0.1)).activations > plain


def test_sharding_divides_what_is_trained_whole():
    changes: dict[str, Any] = {"adapter": {"method": "full"}, "scaling__num_workers": 4}
    four = replace(H100, count=4)
    sharded = needed(config(**changes), 1, four)
    whole = needed(config(**changes, scaling__strategy="ddp"), 1, four)
    assert sharded.optimizer == whole.optimizer // 4
    assert sharded.weights < whole.weights / 2
    adapters = needed(config(scaling__num_workers=4, scaling__strategy="fsdp"), 1, four)
    assert adapters.gradients == needed(config()).gradients


def test_a_base_that_shrinks_must_fit_a_host_before_it_does_and_never_a_gpu():
    qlora = config(adapter__method="qlora", train__activation_checkpointing="layer")
    assert needed(qlora).peak == sum(needed(qlora).parts.values())
    tight = needed(qlora, 1, replace(H100, device="cpu"))
    assert tight.peak == tight.loading + tight.overhead


def test_a_base_that_is_sharded_is_never_whole_on_a_worker():
    on_cpus = replace(H100, device="cpu", count=8)
    for adapter in ({"method": "qlora"}, {"method": "full"}, {"method": "lora"}):
        changes = {"adapter": adapter, "scaling__num_workers": 8, "scaling__strategy": "fsdp"}
        found = needed(config(**changes, train__activation_checkpointing="layer"), 1, on_cpus)
        assert found.peak == sum(found.parts.values())


def test_what_is_saved_beside_a_step_is_held_twice_in_a_cpu_workers_memory():
    cpu = replace(H100, device="cpu")
    found = needed(config(), 1, cpu)
    assert found.snapshot == found.adapter + found.optimizer
    assert needed(config(), 1).snapshot == 0  # a GPU's copy is on its host


def test_the_chunk_of_logits_is_the_one_that_the_loss_holds():
    assert memory.LOGITS_AT_ONCE == entropy._LOGITS_AT_ONCE
    assert memory._WITH_HEAD == entropy._WITH_WEIGHT
    in_half = 2 * torch.bfloat16.itemsize  # logits and their gradient
    in_fp32 = 2 * torch.float32.itemsize + torch.bfloat16.itemsize
    assert entropy._IN_HALF * in_half <= in_fp32  # what is planned


def chosen(run: RunConfig, worker: Worker, shape: ModelShape | None = LLAMA_8B) -> Choice:
    return settle(run, shape, worker)


def test_auto_takes_about_the_largest_micro_batch_that_fits_a_cpu():
    run = config(train__global_batch_size=12)
    cpu = replace(H100, device="cpu", memory=needed(run, 4, replace(H100, device="cpu")).peak)
    assert (chosen(run, cpu).micro, chosen(run, cpu).activations) == (3, "none")  # 4: 2 % faster
    assert chosen(run, replace(cpu, memory=GIB)).micro == 1
    assert chosen(run, replace(cpu, memory=None)).micro == 1
    assert chosen(run, cpu, None).micro == 1
    assert chosen(config(train__micro_batch_size=8), cpu).micro == 8


def test_a_gpu_computes_nothing_twice_that_it_can_keep():
    large = chosen(config(), H100)
    assert (large.micro, large.activations) == (4, "none")
    assert "all activations kept: the fastest that fits" in large.reason
    told = chosen(config(train__activation_checkpointing="layer"), H100)
    assert told.activations == "layer"
    assert "layers computed twice: as the run says, the fastest that fits" in told.reason


def test_the_less_memory_there_is_the_more_is_computed_twice():
    run, found = config(train__micro_batch_size=4), []
    needs = {
        policy: needed(config(train__activation_checkpointing=policy), 4).peak
        for policy in ("none", "pointwise", "mlp", "layer", "offload")
    }
    for policy, peak in needs.items():
        choice = chosen(run, replace(H100, memory=peak))
        assert choice.activations == policy
        if found:
            assert f"{found[-1]} needs {needs[found[-1]] / GIB:.1f} GiB" in choice.reason
        found.append(policy)
    least = chosen(run, replace(H100, memory=needs["offload"] - 1))
    assert least.activations == "offload"
    assert "too much" in least.reason


def test_a_model_whose_mlp_has_another_name_is_never_asked_for_it():
    names = {name.replace("mlp.", "ffn."): size for name, size in LLAMA_8B.linear.items()}
    room = needed(config(train__activation_checkpointing="mlp"), 4).peak
    run, other = config(train__micro_batch_size=4), replace(LLAMA_8B, linear=names)
    assert chosen(run, replace(H100, memory=room), other).activations == "layer"


def test_activations_leave_the_gpu_only_where_nothing_else_fits_or_for_a_quarter_of_all():
    saving = {"train__objective": "memory", "adapter__method": "qlora"}
    short, long = (chosen(config(**saving, data__max_length=n), H100) for n in (2048, 32768))
    assert (short.activations, long.activations) == ("layer", "offload")
    layer = needed(
        config(**saving, data__max_length=32768, train__activation_checkpointing="layer")
    )
    assert f"{layer.peak / GIB:.1f} GiB with layer" in long.reason
    assert long.memory is not None
    assert long.memory.on_host == 32 * 32768 * 4096 * 2
    assert chosen(config(**saving, data__max_length=32768), ON_CPU).activations == "layer"
    assert needed(config(train__activation_checkpointing="offload"), 4, ON_CPU).on_host == 0


def test_of_equally_fast_ways_the_smallest_is_taken():
    found = chosen(config(data__max_length=8192), replace(H100, memory=200 * GIB))
    largest = needed(config(data__max_length=8192), found.micro)
    assert found.micro * 8192 <= 32768
    assert largest.peak < 200 * GIB


def test_the_memory_objective_computes_twice_and_keeps_the_gpu_busy():
    run = config(train__objective="memory", adapter__method="qlora")
    found = chosen(run, H100)
    assert (found.micro, found.activations) == (4, "layer")
    assert found.memory is not None
    assert found.memory.peak - found.memory.overhead < 10 * GIB
    assert chosen(run, replace(H100, memory=None)).activations == "layer"


def test_the_memory_objective_leaves_a_frozen_table_on_the_host():
    table = LLAMA_8B.vocab * LLAMA_8B.hidden * 2
    saving, fsdp = {"train__objective": "memory"}, {"scaling__strategy": "fsdp"}
    full = {"adapter": {"method": "full"}}

    def weights(shape: ModelShape = LLAMA_8B, worker: Worker = H100, **changes: Any) -> int:
        return estimate(config(**changes), shape, worker, 1).weights

    assert weights(**saving) == weights() - table
    assert weights(**saving, **full) == weights(**full)
    assert weights(**saving, **fsdp) == weights(**fsdp)
    tied, on_cpu = replace(LLAMA_8B, tied=True), replace(H100, device="cpu")
    assert weights(tied, **saving) == weights(tied)
    assert weights(worker=on_cpu, **saving) == weights(worker=on_cpu)


def test_fp8_takes_what_bf16_takes_and_needs_a_gpu():
    fp8 = config(adapter__base_precision="fp8")
    assert needed(fp8).weights == needed(config()).weights
    assert plan(fp8).fits is False
    assert "needs GPUs that multiply 8-bit floats" in plan(fp8).verdict


def test_workers_on_cpu_share_the_hosts_memory():
    one = worker_of(config(), None, LAPTOP)
    two = worker_of(config(scaling__num_workers=2), None, LAPTOP)
    assert one.device == "cpu"
    assert one.memory is not None
    assert two.memory == pytest.approx(one.memory / 2, abs=1)


def test_a_cluster_file_decides_where_it_names_nodes():
    nodes = [NodesConfig(count=2, cpus=32, memory_gib=256, gpus=4, gpu_memory_gib=80)]
    cluster = ClusterConfig(address="auto", nodes=nodes)
    found = plan(config(scaling__num_workers=8), cluster)
    assert (found.worker.device, found.dtype, found.fits) == ("gpu", "bfloat16", True)
    shared = worker_of(config(scaling__gpus_per_worker=0.5), cluster, LAPTOP)
    assert shared.memory == int(0.95 * 40 * GIB)
    on_cpu = plan(config(scaling__gpus_per_worker=0), cluster)
    assert (on_cpu.worker.device, on_cpu.dtype) == ("cpu", "float32")


def test_too_few_gpus_are_told():
    nodes = [NodesConfig(cpus=32, memory_gib=256, gpus=4, gpu_memory_gib=80)]
    found = plan(config(scaling__num_workers=8), ClusterConfig(nodes=nodes))
    assert (found.fits, found.verdict) == (False, "8 GPUs are needed and there are 4")


def test_too_few_cpus_are_told_with_the_one_for_reading():
    found = plan(config(scaling__num_workers=2, scaling__cpus_per_worker=4))
    assert found.fits is False
    assert found.verdict == "9 CPUs are needed, 1 for reading data, and there are 8"


def test_what_does_not_fit_comes_with_what_would():
    nodes = [NodesConfig(cpus=8, memory_gib=32, gpus=1, gpu_memory_gib=24)]
    run = config(train__micro_batch_size=4, train__activation_checkpointing="none")
    found = make_plan(run, LLAMA_8B, ClusterConfig(nodes=nodes), LAPTOP)
    assert found.fits is False
    assert "would fit: train.activation_checkpointing=auto | " in found.verdict
    assert "train.activation_checkpointing=layer | " in found.verdict


def test_nothing_is_invented_for_an_unknown_model_or_cluster():
    found = make_plan(config(model__name="org/unknown"), None, None, LAPTOP)
    assert (found.parameters, found.trainable, found.memory, found.fits) == (None,) * 4
    assert "shape of 'org/unknown' is not known" in found.verdict
    near = make_plan(config(model__name="smollm2-135m"), None, None, LAPTOP)
    assert "did you mean 'smollm2-135m-instruct'?" in near.verdict
    gone = make_plan(config(model__name="./gone"), None, None, LAPTOP)
    assert "once the model is in that folder" in gone.verdict
    somewhere = plan(config(), ClusterConfig(address="auto"))
    assert somewhere.fits is None
    assert "names no nodes" in somewhere.verdict


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"adapter": {"method": "full"}}, "train.learning_rate=0.0002 is high"),
        ({"train__learning_rate": 1e-5}, "train.learning_rate=1e-05 is low"),
        ({"train__global_batch_size": 64}, "train.global_batch_size=64 is large"),
        ({"train__warmup_steps": 60}, "train.warmup_steps=60 is over half"),
        ({"checkpoint__every_steps": 200}, "checkpoint.every_steps=200"),
        ({"eval__every_steps": 200}, "eval.every_steps=200"),
        ({"model__trust_remote_code": True}, "Python code of"),
        ({"model__name": "./gone"}, "model.name: no folder at ./gone"),
        ({"data__eval": "gone.jsonl"}, "data.eval: nothing at gone.jsonl"),
        ({"data__chat_template": "gone.jinja"}, "data.chat_template: no file at gone.jinja"),
        ({"adapter.target": ["q_prj", "mlp.up_proj"]}, "is called 'q_prj'; did you mean 'q_proj'?"),
        ({}, "data.eval is not set"),
    ],
)
def test_doubtful_settings_are_warned_of(changes: dict[str, Any], warning: str):
    assert any(warning in told for told in plan(config(**changes)).warnings)


def test_this_machine_has_cores_and_memory():
    machine = this_machine()
    assert machine.cpus >= 1
    assert machine.memory > GIB
