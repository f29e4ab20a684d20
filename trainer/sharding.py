"""The frozen base in shares: each process holds a part of every weight, and all of them gather a layer to compute it.

FSDP2 (`torch.distributed.fsdp.fully_shard`; Zhao et al. 2023, PyTorch FSDP) moves the base's weights and nothing
else. The adapter is put on afterwards, so that its weights are whole, plain and alike in every process: the crew adds
their gradients up, and saving, checkpoints and the optimiser know nothing of shares. Gathering is a collective: all
processes must call the model equally often, and one that fails in it cannot try again by itself.
"""

from __future__ import annotations

import gc

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import PreTrainedModel

from trainer import decoder, packing
from trainer.crew import Crew
from trainer.errors import HostUnfit


def shard(model: PreTrainedModel) -> None:
    """Leave this process its share of a model that lies whole in its memory, on the device of the crew's tensors.

    The model is frozen by it. No process waits for another, and the layers are moved one by one, so that a GPU never
    holds the whole of it. HostUnfit for a model whose layers, or whose answers, are of a kind not known here.
    """
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, torch.nn.ModuleList) or not decoder.is_for(model):
        raise HostUnfit(
            f"{type(model).__name__} is not a decoder of like layers, and no other base can be shared between "
            "processes; set shard_base to false, and use_qlora to true where the whole base is too large"
        )
    model.requires_grad_(False)  # before: PEFT would reach only the view of a weight that is in its place at the time
    mesh = DeviceMesh.from_group(dist.group.WORLD, "cuda" if dist.get_backend() == "nccl" else "cpu")
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    gc.collect()


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether this base (not the adapter around it) lies in shares."""
    return isinstance(model, FSDPModule)


def in_step(model: torch.nn.Module, passes: list[packing.Pass], layout: str, crew: Crew) -> list[packing.Pass]:
    """The passes of a step through a base, filled up to as many as any process has where the base is in shares."""
    if not is_sharded(model):
        return passes
    return passes + [packing.empty(layout)] * (max(crew.gather(len(passes))) - len(passes))
