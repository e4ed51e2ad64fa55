"""A real vLLM server samples, through the client, what an engine in process samples."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import pytest

from drift_ray.config import OpenAIConfig, SamplingConfig
from drift_ray.errors import EngineRequestError, ModelError, StageError
from drift_ray.nano import model_dir
from drift_ray.nano.tokenizer import build_tokenizer
from drift_ray.rollout.openai_engine import OpenAIEngine
from drift_ray.rollout.protocol import Completion, Engine, Refusal, Request
from drift_ray.rollout.vllm_engine import VllmEngine
from drift_ray.types import StopReason

DEADLINE_S = 300.0
WINDOW = 512
KEY_ENV = "DRIFT_RAY_TEST_KEY"
VLLM_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
SAMPLINGS = (
    SamplingConfig(),
    SamplingConfig(temperature=0.0),
    SamplingConfig(temperature=0.7, top_p=0.8),
    SamplingConfig(temperature=1.5),
)


@dataclass(frozen=True, slots=True)
class Server:
    url: str
    key: str


def requests() -> list[Request]:
    tokenizer = build_tokenizer()
    return [
        Request(
            request_id=f"r{index}",
            token_ids=tokenizer.encode(
                f"<|user|>{10 + 2 * index}+{95 - index}=?<|end|><|assistant|><answer>",
                add_special_tokens=False,
            ),
            sampling=SAMPLINGS[index % len(SAMPLINGS)],
            max_tokens=2 if index % 8 >= 6 else 12,
            seed=2**63 - 1 - index,
        )
        for index in range(32)
    ]


def outcomes_of(engine: Engine, asked: list[Request]) -> dict[str, Any]:
    for request in asked:
        engine.submit(request)
    outcomes: dict[str, Any] = {}
    while len(outcomes) < len(asked):
        outcomes |= {outcome.request_id: outcome for outcome in engine.step()}
    return outcomes


def sample_in_process(asked: list[Request]) -> dict[str, Completion]:
    os.environ.update(VLLM_ENVIRONMENT)
    engine = VllmEngine(model_dir(), on_gpu=False, arguments={"max_model_len": WINDOW})
    return outcomes_of(engine, asked)


def vllm_server(port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(model_dir()), "--served-model-name", "nano"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--max-model-len", str(WINDOW), "--max-num-batched-tokens", "2048"),
        *("--dtype", "float32", "--enforce-eager", "--block-size", "32"),
        *("--kv-cache-memory-bytes", str(1 << 28), "--no-enable-chunked-prefill"),
        # What real models bring along; the client must not sample by it.
        *("--override-generation-config", '{"repetition_penalty": 1.5, "top_k": 2}'),
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A vLLM server that is starting."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    key = secrets.token_hex(16)
    environment = os.environ | VLLM_ENVIRONMENT | {"VLLM_API_KEY": key}
    log = tmp_path_factory.mktemp("server") / "log"
    with open(log, "wb") as stream:
        process = psutil.Popen(
            vllm_server(port), env=environment, stdout=stream, stderr=subprocess.STDOUT
        )
    try:
        yield Server(url=f"http://127.0.0.1:{port}/v1", key=key)
        assert process.poll() is None, log.read_text()
    finally:
        family = [process, *process.children(recursive=True)] if process.is_running() else []
        process.terminate()
        for left in psutil.wait_procs(family, timeout=20)[1]:
            left.kill()
        process.wait()


def config(server: Server, **settings: Any) -> OpenAIConfig:
    raw = {"kind": "openai", "urls": [server.url], "model": "nano", "max_model_len": WINDOW}
    return OpenAIConfig(**{**raw, "api_key_env": KEY_ENV, **settings})


@pytest.fixture
def engine(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIEngine]:
    """Connected once the server is up."""
    monkeypatch.setenv(KEY_ENV, server.key)
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            engine = OpenAIEngine(config(server), build_tokenizer())
        except StageError as error:
            if "can be reached" not in str(error) or time.monotonic() > deadline:
                raise
        else:
            break
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def in_process(server: Server) -> Iterator[dict[str, Completion]]:
    """Sampled by an engine in a process of its own while the server starts."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        yield pool.submit(sample_in_process, requests()).result(DEADLINE_S)


def test_a_server_samples_what_an_engine_in_process_does(
    in_process: dict[str, Completion], engine: OpenAIEngine
) -> None:
    through_server = outcomes_of(engine, requests()[::-1])
    assert engine.exact is True
    assert through_server.keys() == in_process.keys()
    for name, expected in in_process.items():
        completion = through_server[name]
        assert completion.token_ids.tolist() == expected.token_ids.tolist()
        np.testing.assert_allclose(completion.logprobs, expected.logprobs, rtol=1e-5, atol=1e-6)
        assert completion.stop_reason is expected.stop_reason
        stopped = completion.stop_reason is StopReason.STOP
        assert (completion.token_ids[-1] == engine.tokenizer.eos_token_id) == stopped
    assert {completion.stop_reason for completion in in_process.values()} == {
        StopReason.STOP,
        StopReason.LENGTH,
    }


def test_a_server_refuses_one_request_and_goes_on(engine: OpenAIEngine) -> None:
    sound, *_ = requests()
    long = Request(
        request_id="long",
        token_ids=sound.token_ids * 100,
        sampling=SamplingConfig(),
        max_tokens=12,
        seed=0,
    )
    outcomes = outcomes_of(engine, [long, sound])
    refusal = outcomes["long"]
    assert isinstance(refusal, Refusal)
    assert isinstance(refusal.error, EngineRequestError)
    assert "status 400" in str(refusal.error)
    assert str(WINDOW) in str(refusal.error)
    assert isinstance(outcomes[sound.request_id], Completion)
    assert engine.exact is True


@pytest.mark.usefixtures("engine")
def test_a_server_is_checked_at_the_start(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"512 tokens.*max_model_len is 1024"):
        OpenAIEngine(config(server, max_model_len=1024), None)
    with pytest.raises(ModelError, match=r"'larger'.*lists: nano"):
        OpenAIEngine(config(server, model="larger"), None)
    monkeypatch.setenv(KEY_ENV, "wrong")
    with pytest.raises(StageError, match=KEY_ENV):
        OpenAIEngine(config(server), None)
    monkeypatch.delenv(KEY_ENV)
    with pytest.raises(StageError, match="not set"):
        OpenAIEngine(config(server), None)
