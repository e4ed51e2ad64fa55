"""One policy on many processes: replicated (DDP) or sharded (FSDP2), with the same gradients.

Both average gradients over ranks, and both let a rank without samples take part with a gradient of
zero. What differs is where parameters and optimizer state live.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from drift_ray.config import TrainingConfig
from drift_ray.errors import ModelError
from drift_ray.training.loss import WeightedNLL


def parallelize(
    objective: WeightedNLL, config: TrainingConfig, device: torch.device | None = None
) -> nn.Module:
    """Prepare a policy in place for training on this process and its peers.

    Args:
        objective: A policy, the same on every rank. Dropout is switched off: the policy that is
            trained is the policy that acts.
        config: ``strategy``, ``dtype``, ``activation_checkpointing`` and ``compile``.
        device: Where to train, if not where the policy is. Shards go there layer by layer, so that
            the whole need not fit a GPU; it has to fit this rank's share of the host's memory.

    Returns:
        What to call in place of ``objective``.
    """
    policy = objective.policy
    device = device or policy.device
    policy.eval()
    layers = decoder_layers(policy)
    if config.activation_checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
        for layer in layers:
            layer.training = True  # what transformers asks; dropout asks the modules inside
    if config.compile:
        for layer in layers:
            layer.compile(dynamic=True)
    if not dist.is_initialized():
        return objective.to(device)
    if uses_fsdp(config, device):
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        # The batch holds weights and log-probabilities, which stay float32.
        precision = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if config.dtype == "bfloat16" else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
        for module in (*layers, objective):
            fully_shard(module, mesh=mesh, mp_policy=precision)
        return objective
    return DistributedDataParallel(
        objective.to(device), broadcast_buffers=False, gradient_as_bucket_view=True
    )


def uses_fsdp(config: TrainingConfig, device: torch.device) -> bool:
    """Whether parameters are sharded; by default where there are GPUs."""
    if config.strategy == "auto":
        return device.type == "cuda"
    return config.strategy == "fsdp"


def decoder_layers(policy: PreTrainedModel) -> nn.ModuleList:
    """The policy's decoder layers, the unit of sharding and recomputation.

    Raises:
        ModelError: They are not where transformers' causal language models have them.
    """
    layers = getattr(policy.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ModelError(
            f"{type(policy).__name__} does not keep its decoder layers in a list `layers`.",
            "Choose a decoder-only model such as Qwen, Llama or Mistral.",
        )
    return layers


def backward_context(module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Forward and backward of one micro-batch happen in it; replicas speak in the last one only."""
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return nullcontext()


def forget_whole_parameters(module: nn.Module) -> None:
    """To be called after a forward pass that no backward pass follows.

    FSDP leaves the root's parameters whole, for the backward pass, until somebody says so.
    """
    if isinstance(module, FSDPModule):
        module.reshard()


def clip_grad_norm(module: nn.Module, max_norm: float) -> float:
    """Scale the gradients down to a global L2 norm and return the norm they had."""
    norm = nn.utils.clip_grad_norm_(module.parameters(), max_norm)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def full_state_dict(policy: PreTrainedModel) -> dict[str, Tensor]:
    """The policy's tensors whole and on the CPU, on rank 0; every rank has to call it.

    Tied parameters have one name, the first.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    tensors = get_model_state_dict(policy, options=options)
    all_names = {name for name, _ in policy.named_parameters(remove_duplicate=False)}
    aliases = all_names - {name for name, _ in policy.named_parameters()}
    return {name: tensor for name, tensor in tensors.items() if name not in aliases}
