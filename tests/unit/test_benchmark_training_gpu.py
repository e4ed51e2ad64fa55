"""The GPU benchmark does what it says: on a CPU, in a tiny shape."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import training_gpu

    return training_gpu


def test_all_trainers_take_the_same_steps(benchmark: ModuleType) -> None:
    [first, *others] = [
        benchmark.contend(name, benchmark.TINY, 32, "cpu", 0) for name in benchmark.TRAINERS
    ]
    assert len(first["losses"]) == benchmark.WARMUP_STEPS + benchmark.TIMED_STEPS
    for other in others:
        assert other["losses"] == pytest.approx(first["losses"], rel=1e-4)
        assert other["grad_norms"] == pytest.approx(first["grad_norms"], rel=1e-3)
        assert other["tokens_per_s"] > 0


def test_out_of_memory_is_a_result(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(benchmark, "train_ours", run_out)
    result = benchmark.contend("ours", benchmark.TINY, 32, "cpu", 0)
    assert result == {"out_of_memory": True}
    row = {"shape": benchmark.TINY, "row": 32, "trainer": "ours", **result}
    benchmark.print_table([row], "some GPU", 1e12)


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("Qwen2.5-0.5B", 494_032_768),
        ("Qwen2.5-1.5B", 1_543_714_304),
        ("Qwen2.5-3B", 3_085_938_688),
    ],
)
def test_shapes_are_those_published(benchmark: ModuleType, name: str, num_parameters: int) -> None:
    with torch.device("meta"):
        model = Qwen2ForCausalLM(Qwen2Config(**benchmark.SHAPES[name]))
    assert sum(p.numel() for p in model.parameters()) == num_parameters


def test_model_flops_are_those_of_the_matrix_products(benchmark: ModuleType) -> None:
    config = Qwen2Config(**benchmark.TINY_SHAPE, attn_implementation="eager")
    model = Qwen2ForCausalLM(config)
    num_rows, row = 3, 24
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros((num_rows, row), dtype=torch.long)).logits.sum().backward()
    # PyTorch computes the whole square of the attention, of which causality needs half.
    square = benchmark.model_flops(config, num_rows, 2 * row, 0) / 2
    square += benchmark.model_flops(config, num_rows, 0, row)
    assert counter.get_total_flops() == pytest.approx(square)


def test_without_a_gpu_it_is_skipped(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    benchmark.main([])
    assert capsys.readouterr().out == "skipped: no GPU\n"
