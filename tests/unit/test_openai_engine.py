"""The client of OpenAI-compatible servers, against servers on loopback."""

from __future__ import annotations

import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drift_ray.config import OpenAIConfig, SamplingConfig
from drift_ray.errors import EngineRequestError, ModelError, StageError
from drift_ray.rollout import openai_client, openai_servers
from drift_ray.rollout.openai_engine import OpenAIEngine
from drift_ray.rollout.protocol import Completion, Refusal, Request
from drift_ray.types import StopReason
from tests.unit.openai_stub import (
    MODEL,
    Answer,
    Body,
    Stub,
    exact,
    failure,
    models,
    sampled_ids,
    text_of,
)

KEY = "sk-a-very-secret-key"
KEY_ENV = "DRIFT_RAY_TEST_KEY"
Serve = Callable[..., Stub]
Connect = Callable[..., OpenAIEngine]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_servers, "FIRST_WAIT_S", 0.002)
    monkeypatch.setenv(KEY_ENV, KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(autouse=True)
def _no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stubs speak plain HTTP; to read the machine's certificates costs each client 0.1 s."""
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda *args, **options: None)


@pytest.fixture
def serve() -> Iterator[Serve]:
    stubs: list[Stub] = []

    def start(*arguments: Any, **options: Any) -> Stub:
        stubs.append(Stub(*arguments, **options))
        return stubs[-1]

    yield start
    for stub in stubs:
        stub.close()


@pytest.fixture
def connect(nano_tokenizer: Any) -> Iterator[Connect]:
    engines: list[OpenAIEngine] = []

    def start(*urls: str, **settings: Any) -> OpenAIEngine:
        raw = {"kind": "openai", "model": MODEL, "max_model_len": 512, "api_key_env": KEY_ENV}
        config = OpenAIConfig(**{**raw, "urls": list(urls), **settings})
        engines.append(OpenAIEngine(config, nano_tokenizer))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def request(name: str = "r", *, seed: int = 7, **sampling: Any) -> Request:
    return Request(
        request_id=name,
        token_ids=[1, 2, 3],
        sampling=SamplingConfig(**sampling),
        max_tokens=12,
        seed=seed,
    )


def outcomes_of(engine: OpenAIEngine, *requests: Request) -> dict[str, Completion | Refusal]:
    for each in requests:
        engine.submit(each)
    outcomes: dict[str, Completion | Refusal] = {}
    while len(outcomes) < len(requests):
        outcomes |= {outcome.request_id: outcome for outcome in engine.step()}
    assert engine.step() == []
    return outcomes


def complete(engine: OpenAIEngine, each: Request | None = None) -> Completion:
    (outcome,) = outcomes_of(engine, each or request()).values()
    assert isinstance(outcome, Completion), outcome
    return outcome


def step_until_it_ends(engine: OpenAIEngine) -> None:
    engine.submit(request())
    while True:
        engine.step()


def refusal(engine: OpenAIEngine) -> str:
    (outcome,) = outcomes_of(engine, request()).values()
    assert isinstance(outcome, Refusal), outcome
    assert isinstance(outcome.error, EngineRequestError)
    assert KEY not in str(outcome.error)
    return str(outcome.error)


def in_order(*answers: Answer | Callable[[Body], Answer]) -> Callable[[Body], Answer]:
    """One answer after the other; the last one for good."""
    left = list(answers)

    def answer(body: Body) -> Answer:
        now = left.pop(0) if len(left) > 1 else left[0]
        return now if isinstance(now, Answer) else now(body)

    return answer


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def test_ids_and_logprobs_are_the_servers_own(serve: Serve, connect: Connect) -> None:
    stub = serve()
    engine = connect(stub.url, max_in_flight=3)
    assert (engine.max_num_seqs, engine.max_model_len, engine.exact) == (3, 512, None)
    completion = complete(engine, request(temperature=0.5, top_p=0.9))
    assert completion.token_ids.tolist() == [7, 8, 9]
    assert completion.token_ids.dtype == np.int32
    expected = np.asarray([-0.5 - token / 1024 for token in (7, 8, 9)], np.float32)
    np.testing.assert_array_equal(completion.logprobs, expected)
    assert completion.logprobs.dtype == np.float32
    assert completion.stop_reason is StopReason.STOP
    assert engine.exact is True
    assert stub.keys == {f"Bearer {KEY}"}
    # Everything that a server would else take from its model's generation_config.json.
    assert stub.bodies == [
        {
            "model": MODEL,
            "prompt": [1, 2, 3],
            "max_tokens": 12,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": -1,
            "min_p": 0.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
            "logprobs": 1,
            "seed": 7,
            "return_token_ids": True,
        }
    ]


def test_greedy_requests_have_no_seed(serve: Serve, connect: Connect) -> None:
    stub = serve()
    complete(connect(stub.url), request(temperature=0.0))
    assert "seed" not in stub.bodies[0]


def test_an_open_server_gets_no_key_of_others(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_ENV)
    monkeypatch.setenv("OPENAI_API_KEY", "for somebody else")
    stub = serve()
    complete(connect(stub.url))
    assert stub.keys == {"Bearer none"}


@pytest.mark.parametrize(
    ("finish_reason", "logprobs", "told"),
    [
        ("stop", {"token_logprobs": [-1.0, -2.0, -3.0]}, [-1.0, -2.0, -3.0]),
        ("length", {"token_logprobs": [-1.0, -2.0]}, [-1.0, -2.0]),
        ("length", {"token_logprobs": [None, -2.0]}, [np.nan] * 2),
        ("stop", {"token_logprobs": [-1.0]}, [np.nan] * 3),
        ("stop", None, [np.nan] * 3),
    ],
)
def test_ids_are_made_anew_of_text(
    serve: Serve,
    connect: Connect,
    nano_tokenizer: Any,
    caplog: pytest.LogCaptureFixture,
    finish_reason: str,
    logprobs: dict[str, Any] | None,
    told: list[float],
) -> None:
    ids = nano_tokenizer.encode("42", add_special_tokens=False)
    assert len(ids) == 2
    engine = connect(serve(lambda _: text_of("42", finish_reason, logprobs=logprobs)).url)
    for _ in range(2):
        completion = complete(engine)
        end = [nano_tokenizer.eos_token_id] if finish_reason == "stop" else []
        assert completion.token_ids.tolist() == ids + end
        np.testing.assert_array_equal(completion.logprobs, np.asarray(told, np.float32))
        assert completion.stop_reason == finish_reason
    assert engine.exact is False
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "made anew from the text" in warnings[0]
    assert len(warnings) == 1 + bool(np.isnan(told).any())
    assert all("stored as missing" in warning for warning in warnings[1:])


def test_a_strict_server_is_asked_without_the_fields_of_vllm(
    serve: Serve, connect: Connect
) -> None:
    def strict(body: Body) -> Answer:
        unknown = body.keys() & {"return_token_ids", "top_k"}
        return failure(400, f"Unrecognized: {unknown}") if unknown else text_of("42")

    stub = serve(strict)
    engine = connect(stub.url)
    complete(engine)
    complete(engine)
    assert ["return_token_ids" in body for body in stub.bodies] == [True, False, False]


def test_a_refused_request_does_not_make_a_server_strict(serve: Serve, connect: Connect) -> None:
    stub = serve(in_order(failure(400, "the prompt is too long"), failure(400, "too long"), exact))
    engine = connect(stub.url)
    message = refusal(engine)
    assert stub.url in message
    assert "status 400: too long" in message
    complete(engine)
    assert engine.exact is True
    stub.complete = in_order(failure(400, f"what is {KEY}?"), exact)
    assert "status 400: what is …?" in refusal(engine)
    assert len(stub.bodies) == 4


@pytest.mark.parametrize(
    "broken",
    [
        failure(408),
        failure(409),
        failure(429),
        failure(429, retry_after="0.01"),
        failure(429, retry_after="0"),
        failure(503, retry_after="soon"),
        failure(429, retry_after="Tue, 24 Nov 2020 12:00:00 +0000"),
        failure(500),
        text_of("4", "abort"),
    ],
    ids=lambda answer: f"{answer.status} {answer.headers}",
)
def test_what_may_pass_is_tried_again(serve: Serve, connect: Connect, broken: Answer) -> None:
    stub = serve(in_order(broken, broken, exact))
    assert complete(connect(stub.url)).token_ids.tolist() == [7, 8, 9]
    assert len(stub.bodies) == 3


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        ("2.5", 2.5),
        ("100000", 120.0),
        ("-1", None),
        ("soon", None),
        ("Tue, 24 Nov 2099 12:00:00 +0000", 120.0),
    ],
)
def test_retry_after_is_a_number_or_a_date(value: str, wait_s: float | None) -> None:
    assert openai_client._retry_after_s({"retry-after": value}) == wait_s
    assert openai_client._retry_after_s({}) is None


def test_retry_after_is_waited_for(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    async def sleep(wait_s: float) -> None:
        slept.append(wait_s)

    stub = serve(in_order(failure(429, retry_after="17"), exact))
    engine = connect(stub.url)
    monkeypatch.setattr(openai_servers.asyncio, "sleep", sleep)
    complete(engine)
    assert len(slept) == 1
    assert 16.0 < slept[0] <= 17.0 * 1.2


def test_attempts_come_to_an_end(serve: Serve, connect: Connect) -> None:
    stub = serve(lambda _: failure(500, f"out of memory, {KEY}"))
    message = refusal(connect(stub.url, max_attempts=3))
    assert len(stub.bodies) == 3
    assert "All 3 attempts" in message
    assert f"{stub.url}: status 500: out of memory, …" in message


def test_a_failing_server_is_passed_over(serve: Serve, connect: Connect) -> None:
    broken, sound = serve(lambda _: failure(500)), serve()
    engine = connect(broken.url, sound.url, max_in_flight=1)
    outcomes = outcomes_of(engine, *(request(f"r{index}") for index in range(10)))
    assert all(isinstance(outcome, Completion) for outcome in outcomes.values())
    assert len(broken.bodies) == 1
    assert len(sound.bodies) == 10


def test_a_server_that_recovers_takes_its_turns_again(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_servers, "REST_S", 0.0)
    first, second = serve(in_order(failure(500), exact)), serve()
    engine = connect(first.url, second.url, max_in_flight=1)
    outcomes_of(engine, *(request(f"r{index}") for index in range(20)))
    assert len(first.bodies) + len(second.bodies) == 21
    assert len(first.bodies) >= 10


def test_servers_take_turns(serve: Serve, connect: Connect) -> None:
    stubs = [serve() for _ in range(3)]
    engine = connect(*(stub.url for stub in stubs))
    for _ in range(9):  # one by one: a connection that a busy machine drops would be tried again
        complete(engine)
    assert [len(stub.bodies) for stub in stubs] == [3, 3, 3]


def test_a_silent_server_runs_into_the_timeout(serve: Serve, connect: Connect) -> None:
    release = threading.Event()

    def silent(body: Body) -> Answer:
        assert release.wait(60)
        return exact(body)

    stub = serve(in_order(silent, exact))
    try:
        assert complete(connect(stub.url, timeout_s=0.5)).token_ids.tolist() == [7, 8, 9]
        assert len(stub.bodies) >= 2
        stub.complete = silent
        message = refusal(connect(stub.url, timeout_s=0.1, max_attempts=1))
        assert "no answer within 0.1 s" in message
    finally:
        release.set()


def test_a_server_that_goes_away_costs_its_requests_only(serve: Serve, connect: Connect) -> None:
    gone, left = Stub(), serve()
    engine = connect(gone.url, left.url)
    alone = connect(gone.url, max_attempts=2)
    gone.close()
    outcomes = outcomes_of(engine, *(request(f"r{index}") for index in range(4)))
    assert all(isinstance(outcome, Completion) for outcome in outcomes.values())
    assert len(left.bodies) == 4
    message = refusal(alone)
    assert f"{gone.url}: no connection" in message


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer("<html>"), "does not answer with a completion"),
        (Answer({"choices": []}), "choices: List should have at least 1 item"),
        (Answer({"choices": [{"index": 0}]}), "choices.0.text: Field required"),
        (text_of("4", "content_filter"), "finish_reason 'content_filter'"),
        (text_of("4", None), "finish_reason None"),
        (failure(422, "x" * 1000), "status 422: " + "x" * 500 + "…"),
    ],
)
def test_answers_that_are_no_samples_are_refused(
    serve: Serve, connect: Connect, answer: Answer, said: str
) -> None:
    stub = serve(lambda _: answer)
    message = refusal(connect(stub.url))
    assert stub.url in message
    assert said in message


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_ends_the_engine(serve: Serve, connect: Connect, status: int) -> None:
    stub = serve(lambda _: failure(status, f"Incorrect API key provided: {KEY[:5]}***{KEY[-3:]}"))
    engine = connect(stub.url)
    with pytest.raises(StageError, match=f"{KEY_ENV}.*{status}.*variable is set") as caught:
        step_until_it_ends(engine)
    assert KEY[:5] not in str(caught.value)
    assert KEY not in repr(vars(engine))


def test_a_model_that_is_gone_ends_the_engine(serve: Serve, connect: Connect) -> None:
    stub = serve(lambda _: failure(404, "no such model"))
    engine = connect(stub.url)
    stub.listed = models("other", "third")
    with pytest.raises(ModelError, match=r"'nano'.*lists: other, third"):
        step_until_it_ends(engine)
    stub.listed = failure(404)
    with pytest.raises(ModelError, match="does not find 'nano': no such model"):
        step_until_it_ends(engine)


@pytest.mark.parametrize(
    ("listed", "error", "said"),
    [
        (models("one", "two"), ModelError, r"'nano'.*lists: one, two"),
        (models(), ModelError, "lists: none"),
        (models(MODEL, max_model_len=256), ModelError, "256 tokens.*max_model_len is 512"),
        (failure(401), StageError, KEY_ENV),
        (failure(404, "Not Found"), StageError, r"list models: Not Found\n.*/v1"),
        (Answer({"models": []}), StageError, "data: Field required"),
        (failure(503, "loading"), StageError, "can be reached.*status 503: loading"),
    ],
)
def test_servers_are_checked_at_the_start(
    serve: Serve, connect: Connect, listed: Answer, error: type[Exception], said: str
) -> None:
    stub, sound = serve(listed=listed), serve(listed=models(MODEL, max_model_len=512))
    with pytest.raises(error, match=said) as caught:
        connect(stub.url)
    assert stub.url in str(caught.value)
    if "can be reached" not in said:
        with pytest.raises(error, match=said):
            connect(sound.url, stub.url)
    assert "openai" not in {thread.name for thread in threading.enumerate()}


def test_a_fleet_starts_without_a_server_that_is_down(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    down, up = f"http://127.0.0.1:{free_port()}/v1", serve()
    with pytest.raises(StageError, match=r"No server.*no connection \(.+\)"):
        connect(down)
    engine = connect(down, up.url)
    assert f"without a server until it answers: {down}" in caplog.text
    complete(engine)
    assert len(up.bodies) == 1


def test_outcomes_do_not_depend_on_the_order(serve: Serve, connect: Connect) -> None:
    crowd = threading.Barrier(10)

    def together(body: Body) -> Answer:
        crowd.wait(60)
        return exact(body)

    requests = [request(f"r{seed}", seed=seed) for seed in range(100)]
    engine = connect(serve(together).url, max_in_flight=10)
    for order in range(2):
        random.Random(order).shuffle(requests)
        for name, outcome in outcomes_of(engine, *requests).items():
            assert isinstance(outcome, Completion)
            assert outcome.token_ids.tolist() == sampled_ids({"seed": int(name[1:])})


def test_no_more_than_max_in_flight_are_under_way(serve: Serve, connect: Connect) -> None:
    crowd, lock = threading.Barrier(4), threading.Lock()
    now = most = 0

    def together(body: Body) -> Answer:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        crowd.wait(60)
        with lock:
            now -= 1
        return exact(body)

    engine = connect(serve(together).url, max_in_flight=4)
    outcomes_of(engine, *(request(f"r{index}") for index in range(12)))
    assert most == 4


def test_servers_keep_their_weights(serve: Serve, connect: Connect) -> None:
    with pytest.raises(ModelError, match=r"model-folder.*\n.*vllm serve"):
        connect(serve().url).load_weights(Path("model-folder"))


def test_close_gives_up_what_is_under_way(serve: Serve, connect: Connect) -> None:
    arrived, release = threading.Event(), threading.Event()

    def silent(body: Body) -> Answer:
        arrived.set()
        assert release.wait(60)
        return exact(body)

    engine = connect(serve(silent).url)
    engine.submit(request())
    try:
        assert arrived.wait(60)
        engine.close()
        engine.close()
        assert "openai" not in {thread.name for thread in threading.enumerate()}
    finally:
        release.set()
