"""vLLM behind the engine protocol. The only module that imports vLLM, and only when used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from drift_ray.config import VllmConfig
from drift_ray.errors import EngineRequestError, ModelError
from drift_ray.rollout.protocol import Completion, Refusal, Request
from drift_ray.types import StopReason

_DEFAULTS: dict[str, Any] = {
    "enable_prefix_caching": True,
    "disable_log_stats": True,
}
_CPU_DEFAULTS: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    # The default of 128 tokens leaves short chats without a single prefix-cache hit.
    "block_size": 32,
    "kv_cache_memory_bytes": 1 << 28,
    # Per-request seeds fail on the CPU when a prefill is split.
    "enable_chunked_prefill": False,
}


class VllmEngine:
    """One vLLM engine in this process.

    Args:
        folder: Hugging Face folder of the policy.
        on_gpu: False applies the defaults that make vLLM work well on CPUs.
        arguments: vLLM engine arguments that override the defaults.
        trust_remote_code: Run code that the model folder brings along.

    Raises:
        ModelError: vLLM is not installed or refuses the model or an argument.
    """

    def __init__(
        self,
        folder: Path,
        *,
        on_gpu: bool,
        arguments: dict[str, Any],
        trust_remote_code: bool = False,
    ) -> None:
        try:
            from vllm import LLM
        except ImportError as error:
            raise ModelError(
                f"vLLM is not installed here ({error}).",
                "Install the extra: pip install 'drift-ray[cpu]' or 'drift-ray[gpu]'.",
            ) from None
        merged = _DEFAULTS | ({} if on_gpu else _CPU_DEFAULTS) | arguments
        if merged.get("enable_chunked_prefill") is False and "max_model_len" in merged:
            merged.setdefault("max_num_batched_tokens", max(2048, merged["max_model_len"]))
        if on_gpu and VllmConfig(arguments=arguments).world_size > 1:
            # Its workers go to the bundles of the replica's placement group.
            merged.setdefault("distributed_executor_backend", "ray")
        try:
            self._llm = LLM(model=str(folder), trust_remote_code=trust_remote_code, **merged)
        except (TypeError, ValueError, OSError, RuntimeError) as error:
            raise ModelError(
                f"vLLM cannot load {folder} with the engine arguments {sorted(merged)}: {error}",
                "Check replicas.engine and the model folder.",
            ) from error
        self._on_gpu = on_gpu
        self._engine = self._llm.llm_engine
        self.max_model_len: int = self._llm.model_config.max_model_len
        self.max_num_seqs: int = self._engine.vllm_config.scheduler_config.max_num_seqs
        self.tokenizer = self._llm.get_tokenizer()

    def load_weights(self, folder: Path) -> None:
        """Replace the policy's weights by those of another folder of the same architecture."""
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        if not self._on_gpu:
            self._llm.apply_model(_pack_embeddings_again)
        if not self._llm.reset_prefix_cache():
            raise ModelError(f"vLLM still holds states of the weights before {folder}.")

    def submit(self, request: Request) -> None:
        """Queue one turn.

        Raises:
            EngineRequestError: vLLM refuses the request.
        """
        from vllm import TokensPrompt
        from vllm.exceptions import VLLMClientError

        try:
            self._engine.add_request(
                request.request_id,
                TokensPrompt(prompt_token_ids=request.token_ids),
                sampling_params(request),
            )
        except (VLLMClientError, ValueError) as error:
            raise EngineRequestError(f"vLLM refuses {request.request_id}: {error}") from error

    def step(self) -> list[Completion | Refusal]:
        """Run one engine step; return the turns that ended."""
        return [_result_of(output) for output in self._engine.step() if output.finished]


def sampling_params(request: Request, **overrides: Any) -> Any:
    """A request's sampling parameters in vLLM's words."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    greedy = request.sampling.temperature == 0
    parameters: dict[str, Any] = {
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        "max_tokens": request.max_tokens,
        "seed": None if greedy else request.seed,
        "logprobs": 0,
        "detokenize": False,
        "output_kind": RequestOutputKind.FINAL_ONLY,
    }
    return SamplingParams(**(parameters | overrides))


def _pack_embeddings_again(model: Any) -> None:
    # vLLM multiplies by a packed copy on CPUs. Its reload leaves the copy of a tied output matrix
    # as it was, so the policy would be a mixture of old and new weights (vLLM 0.32).
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    for layer in model.modules():
        if isinstance(layer, VocabParallelEmbedding):
            layer.quant_method.process_weights_after_loading(layer)


def _result_of(output: Any) -> Completion | Refusal:
    reason = output.outputs[0].finish_reason
    if reason in (StopReason.STOP, StopReason.LENGTH):
        return completion_of(output)
    error = EngineRequestError(f"vLLM ended {output.request_id} with finish reason {reason!r}.")
    return Refusal(request_id=output.request_id, error=error)


def completion_of(output: Any) -> Completion:
    """A finished request of vLLM as a completion."""
    sample = output.outputs[0]
    token_ids = np.asarray(sample.token_ids, np.int32)
    return Completion(
        request_id=output.request_id,
        token_ids=token_ids,
        logprobs=np.fromiter(
            (entry[token].logprob for token, entry in zip(token_ids, sample.logprobs, strict=True)),
            np.float32,
            count=len(token_ids),
        ),
        stop_reason=StopReason(sample.finish_reason),
    )
