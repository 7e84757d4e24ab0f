"""The contract of `FakeOpenAI`: every answer parses strictly with the real client, and faults are real."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionUserMessageParam

from gateway.testing import (
    FakeOpenAI,
    FakeServer,
    Fault,
    Refusal,
    count_tokens,
    echo,
    invalid_file,
    invalid_row,
)

MODEL = "gpt-4o-mini-2024-07-18"
HELLO: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "Hello there, you"}]
TOOL_CALL = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"order": 7}'}}


def client_of(api: FakeOpenAI, key: str = "any") -> openai.OpenAI:
    """The real client, made to raise on any field that does not fit its type."""
    return openai.OpenAI(base_url=api.base_url, api_key=key, max_retries=0, _strict_response_validation=True)


@pytest.fixture
def api() -> Iterator[FakeOpenAI]:
    with FakeOpenAI() as server:
        yield server


@pytest.fixture
def client(api: FakeOpenAI) -> openai.OpenAI:
    return client_of(api)


def row(number: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": "a"}]}


def jsonl(rows: int) -> bytes:
    return b"".join(json.dumps(row(number)).encode() + b"\n" for number in range(rows))


def uploaded(client: openai.OpenAI, content: bytes | None = None) -> str:
    return client.files.create(file=("train.jsonl", content or jsonl(10)), purpose="fine-tune").id


# Chat


def test_a_chat_answer_is_an_echo_with_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO)
    assert answer.choices[0].message.content == "Hello there, you"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4  # Hello / there / , / you
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 4


@pytest.mark.parametrize("text", ["one two  three", " padded ", "line\n\nline", "", "日本語 テキスト"])
def test_a_stream_adds_up_to_the_whole_answer_and_its_usage(text: str) -> None:
    with FakeOpenAI(answer=lambda body: text) as api:
        client = client_of(api)
        whole = client.chat.completions.create(model=MODEL, messages=HELLO)
        chunks = list(
            client.chat.completions.create(
                model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
            )
        )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == text
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]].count("stop") == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage


def test_usage_is_streamed_only_when_it_is_asked_for(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model=MODEL, messages=HELLO, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_an_answer_may_be_a_whole_message_with_tool_calls() -> None:
    with FakeOpenAI(answer=lambda body: {"content": None, "tool_calls": [TOOL_CALL]}) as api:
        client = client_of(api)
        whole = client.chat.completions.create(model=MODEL, messages=HELLO)
        chunks = list(client.chat.completions.create(model=MODEL, messages=HELLO, stream=True))
    assert whole.choices[0].finish_reason == "tool_calls"
    assert [call.to_dict() for call in whole.choices[0].message.tool_calls or []] == [TOOL_CALL]
    streamed = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert [call.to_dict() for call in streamed] == [{"index": 0, **TOOL_CALL}]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_an_answer_sees_the_request_and_may_refuse_it() -> None:
    def answer(body: dict[str, Any]) -> str:
        if body.get("temperature") == 2:
            raise Refusal(400, "too hot", code="invalid_value", param="temperature")
        return f"{body['model']}!"

    with FakeOpenAI(answer) as api:
        client = client_of(api)
        assert client.chat.completions.create(model="abc", messages=HELLO).choices[0].message.content == "abc!"
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="abc", messages=HELLO, temperature=2)
    assert (refused.value.code, refused.value.param) == ("invalid_value", "temperature")


def test_requests_that_the_service_would_refuse_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="model"):
        client.chat.completions.create(model="", messages=HELLO)
    with pytest.raises(openai.BadRequestError, match="messages"):
        client.chat.completions.create(model=MODEL, messages=[])
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="ft:nobody:knows", messages=HELLO)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="Invalid URL"):
        client.embeddings.create(model=MODEL, input="x")


def test_echo_reads_parts_and_the_last_user_message_only() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "b"}]
    said = [
        {"role": "user", "content": "x"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "y"},
    ]
    assert echo({"messages": said}) == "ab"
    assert echo({"messages": [{"role": "system", "content": "s"}]}) == ""
    assert count_tokens("It's 5 o'clock.") == 8


def test_latency_is_in_seconds_and_calls_overlap() -> None:
    with FakeOpenAI(latency=0.5) as api:
        client = client_of(api)

        def ask() -> None:
            client.chat.completions.create(model=MODEL, messages=HELLO)

        started = time.monotonic()
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 0.5 <= time.monotonic() - started < 2.0  # what four take one after the other
        assert len(api.received) == 4


# Models and files


def test_models_are_listed_and_looked_up(client: openai.OpenAI) -> None:
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).owned_by == "fake"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none")


@given(content=st.binary(min_size=1, max_size=400))
def test_a_file_comes_back_byte_for_byte(shared_client: openai.OpenAI, content: bytes) -> None:
    made = shared_client.files.create(file=("any name.bin", content), purpose="user_data")
    assert (made.bytes, made.filename, made.purpose) == (len(content), "any name.bin", "user_data")
    assert shared_client.files.content(made.id).content == content


@pytest.fixture(scope="module")
def shared_client() -> Iterator[openai.OpenAI]:
    with FakeOpenAI() as server:
        yield client_of(server)


def test_a_file_may_be_large(client: openai.OpenAI) -> None:
    content = b"0123456789abcdef" * 100_000
    sent = client.files.create(file=("train.jsonl", content), purpose="fine-tune")
    assert client.files.content(sent.id).content == content


def test_files_are_listed_by_purpose_newest_first_in_pages_and_deleted(client: openai.OpenAI) -> None:
    tuning = [uploaded(client) for _ in range(5)]
    other = client.files.create(file=("b.txt", b"x"), purpose="user_data").id
    assert [file.id for file in client.files.list()] == [other, *tuning[::-1]]
    assert [file.id for file in client.files.list(purpose="fine-tune", limit=2)] == tuning[::-1]
    assert client.files.list(limit=2).has_more
    assert client.files.retrieve(other).filename == "b.txt"
    assert client.files.delete(other).deleted
    with pytest.raises(openai.NotFoundError, match="No such File object"):
        client.files.retrieve(other)


def test_uploads_that_the_service_would_refuse_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=re.escape("Must be .jsonl")):
        client.files.create(file=("train.csv", b"x"), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError, match="empty"):
        client.files.create(file=("train.jsonl", b""), purpose="fine-tune")


# Fine-tuning jobs


def test_a_job_passes_through_its_states_and_leaves_a_model_that_answers(client: openai.OpenAI) -> None:
    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=uploaded(client),
        validation_file=uploaded(client, jsonl(2)),
        suffix="shop",
        seed=3,
        metadata={"who": "me"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": "auto"}}},
    )
    assert (job.status, job.seed, job.metadata) == ("validating_files", 3, {"who": "me"})
    assert job.method is not None
    assert job.method.supervised is not None
    assert job.method.supervised.hyperparameters is not None
    assert job.method.supervised.hyperparameters.n_epochs == 2

    polled = [client.fine_tuning.jobs.retrieve(job.id) for _ in range(4)]
    assert [each.status for each in polled] == ["queued", "running", "succeeded", "succeeded"]
    model = polled[-1].fine_tuned_model
    assert model is not None
    assert model.startswith(f"ft:{MODEL}:org-fake:shop:")
    assert polled[1].fine_tuned_model is None
    assert client.chat.completions.create(model=model, messages=HELLO).model == model
    assert model in [each.id for each in client.models.list()]

    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert [each.step_number for each in checkpoints] == [20, 10]
    assert checkpoints[0].metrics.valid_loss == pytest.approx(0.55)
    early = checkpoints[1].fine_tuned_model_checkpoint
    assert early == f"{model}:ckpt-step-10"
    assert client.chat.completions.create(model=early, messages=HELLO).model == early


def test_events_are_newest_first_and_come_in_pages(client: openai.OpenAI) -> None:
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=uploaded(client))
    while client.fine_tuning.jobs.retrieve(job.id).status != "succeeded":
        pass
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=2))
    assert events[0].message == "The job has successfully completed"
    assert events[-1].message == f"Created fine-tuning job: {job.id}"
    assert len({event.id for event in events}) == len(events) == 9
    figures = [event.data for event in events if event.type == "metrics"]
    assert figures[0] == {"step": 30, "train_loss": 1 / 3, "train_mean_token_accuracy": pytest.approx(5 / 6)}


def test_jobs_are_listed_newest_first_in_pages_and_by_metadata(client: openai.OpenAI) -> None:
    file = uploaded(client)
    made = [
        client.fine_tuning.jobs.create(model=MODEL, training_file=file, metadata={"n": str(number)}).id
        for number in range(5)
    ]
    assert [job.id for job in client.fine_tuning.jobs.list(limit=2)] == made[::-1]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"n": "3"})] == [made[3]]
    assert client.fine_tuning.jobs.list(limit=2, after=made[1]).data[0].id == made[0]


def test_a_job_moves_on_with_an_injected_clock() -> None:
    now = [1_000.0]
    with FakeOpenAI(seconds_per_state=60, clock=lambda: now[0]) as api:
        client = client_of(api)
        job = client.fine_tuning.jobs.create(model=MODEL, training_file=uploaded(client))
        assert client.fine_tuning.jobs.retrieve(job.id).status == "validating_files"
        now[0] += 119
        assert client.fine_tuning.jobs.retrieve(job.id).status == "queued"
        now[0] += 10_000
        done = client.fine_tuning.jobs.retrieve(job.id)
        assert (done.status, done.finished_at) == ("succeeded", 11_119)
        assert len(list(client.fine_tuning.jobs.list_events(job.id))) == 9


def test_an_unknown_state_shows_and_a_strict_client_stumbles_over_it() -> None:
    """Also the proof that the other tests of this file are strict."""
    with FakeOpenAI(states=("validating_files", "paused", "succeeded")) as api:
        client = client_of(api)
        job = client.fine_tuning.jobs.create(model=MODEL, training_file=uploaded(client))
        with pytest.raises(openai.APIResponseValidationError):
            client.fine_tuning.jobs.retrieve(job.id)
        assert client.fine_tuning.jobs.retrieve(job.id).status == "succeeded"


def test_a_job_can_be_cancelled_until_it_has_ended(client: openai.OpenAI) -> None:
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=uploaded(client))
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert client.fine_tuning.jobs.retrieve(job.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="already completed"):
        client.fine_tuning.jobs.cancel(job.id)


def test_a_job_fails_on_demand(api: FakeOpenAI, client: openai.OpenAI) -> None:
    api.fail_next_job("refusals_v3", "did not pass moderation")
    file = uploaded(client)
    doomed, fine = (client.fine_tuning.jobs.create(model=MODEL, training_file=file) for _ in range(2))
    for _ in range(3):
        client.fine_tuning.jobs.retrieve(fine.id)
        ended = client.fine_tuning.jobs.retrieve(doomed.id)
    assert (ended.status, ended.fine_tuned_model) == ("failed", None)
    assert ended.error is not None
    assert (ended.error.code, ended.error.message) == ("refusals_v3", "did not pass moderation")
    assert client.fine_tuning.jobs.retrieve(fine.id).status == "succeeded"
    assert client.fine_tuning.jobs.list_events(doomed.id).data[0].level == "error"


def test_a_bad_file_fails_the_job_while_it_is_validated(client: openai.OpenAI) -> None:
    bad = uploaded(client, jsonl(10) + b'{"messages": [{"role": "user", "content": "no answer"}]}\n')
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=bad)
    failed = client.fine_tuning.jobs.retrieve(job.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert (failed.error.code, failed.error.param) == ("invalid_training_file", "training_file")
    assert "Line 11: the last message must be from the assistant" in failed.error.message


def test_the_next_file_is_bad_on_demand_and_the_one_after_it_is_not(api: FakeOpenAI, client: openai.OpenAI) -> None:
    api.fail_next_file("line 3 holds an emoji that we do not like")
    file = uploaded(client)
    doomed, fine = (client.fine_tuning.jobs.create(model=MODEL, training_file=file) for _ in range(2))
    failed = client.fine_tuning.jobs.retrieve(doomed.id)
    assert failed.error is not None
    assert (failed.status, failed.error.code) == ("failed", "invalid_training_file")
    assert failed.error.message == "line 3 holds an emoji that we do not like"
    assert client.fine_tuning.jobs.retrieve(fine.id).status != "failed"


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"model": "gpt-none"}, "not available for fine-tuning"),
        ({"training_file": "file-none"}, "Invalid training_file"),
        ({"validation_file": "file-none"}, "Invalid validation_file"),
        ({"suffix": "s" * 65}, "suffix"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"hyperparameters": {"n_epochs": 51}}, "n_epochs"),
        ({"method": {"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 257}}}}, "batch_size"),
        ({"hyperparameters": {"learning_rate_multiplier": 0}}, "learning_rate_multiplier"),
    ],
)  # fmt: skip
def test_a_job_out_of_the_documented_limits_is_refused(
    api: FakeOpenAI, client: openai.OpenAI, change: dict[str, Any], wrong: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=wrong):
        client.fine_tuning.jobs.create(**{"model": MODEL, "training_file": uploaded(client), **change})
    assert api.jobs == []


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ("hello", "missing a list of 'messages'"),
        ([], "missing a list of 'messages'"),
        (["hello"], "message 0: missing key 'role'"),
        ([{"content": "x"}], "message 0: missing key 'role'"),
        ([{"role": "user", "content": "x", "id": 1}], "message 0: unrecognized key 'id'"),
        ([{"role": "robot", "content": "x"}], "message 0: unrecognized role 'robot'"),
        ([{"role": "user", "content": "x", "weight": 1}], "message 0: 'weight' must be 0 or 1"),
        ([{"role": "assistant", "content": "x", "weight": 2}], "message 0: 'weight' must be 0 or 1"),
        ([{"role": "user", "content": None}], "message 0: missing content"),
        ([{"role": "user", "content": "x <|im_start|>"}], "message 0: contains a reserved special token"),
        ([{"role": "user", "content": "x"}], "the last message must be from the assistant"),
        ([{"role": "assistant", "content": "x", "weight": 0}], None),
        ([{"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]}], None),
    ],
)
def test_rows_are_refused_as_the_service_documents_it(messages: Any, why: str | None) -> None:
    found = invalid_row(json.dumps({"messages": messages}).encode())
    assert (found is None) is (why is None)
    assert (found or "").startswith(why or "")


def test_a_training_file_needs_ten_examples_and_a_validation_file_does_not() -> None:
    assert invalid_file(jsonl(9), param="validation_file") is None
    assert invalid_file(jsonl(10), param="training_file") is None
    error = invalid_file(jsonl(9), param="training_file")
    assert error is not None
    assert error["code"] == "invalid_n_examples"
    assert invalid_row(b"{") == "not valid JSON"


# Faults, the record and the life of a server


def test_faults_hit_what_they_fit_as_often_as_they_are_told(api: FakeOpenAI, client: openai.OpenAI) -> None:
    api.inject(Fault(status=503, times=2, path="/v1/models"))
    client.files.list()
    for _ in range(2):
        with pytest.raises(openai.InternalServerError):
            client.models.list()
    assert client.models.list().data


def test_a_rate_limit_says_how_long_to_wait(api: FakeOpenAI, client: openai.OpenAI) -> None:
    api.inject(Fault(status=429, retry_after=1.5, code="rate_limit_exceeded"))
    with pytest.raises(openai.RateLimitError) as limited:
        client.models.list()
    assert limited.value.response.headers["Retry-After"] == "1.5"
    assert limited.value.code == "rate_limit_exceeded"


def test_a_dropped_connection_loses_the_answer_but_not_the_deed(api: FakeOpenAI, client: openai.OpenAI) -> None:
    api.inject(Fault(drop=True, method="POST", path="/v1/files"))
    with pytest.raises(openai.APIConnectionError):
        uploaded(client)
    assert [file.filename for file in client.files.list()] == ["train.jsonl"]


def test_an_error_status_does_nothing_else(api: FakeOpenAI, client: openai.OpenAI) -> None:
    api.inject(Fault(status=500, method="POST"))
    with pytest.raises(openai.InternalServerError):
        uploaded(client)
    assert client.files.list().data == []


def test_a_dropped_stream_gives_no_whole_answer(api: FakeOpenAI, client: openai.OpenAI) -> None:
    api.inject(Fault(drop=True, path="/v1/chat/completions"))
    with pytest.raises(openai.APIConnectionError):
        client.chat.completions.create(model=MODEL, messages=HELLO)


def test_everything_received_is_kept_as_it_came(api: FakeOpenAI, client: openai.OpenAI) -> None:
    client.chat.completions.create(model=MODEL, messages=HELLO, extra_headers={"X-Mine": "1"})
    client.files.list(purpose="fine-tune")
    chat, listed = api.received
    assert (chat.method, chat.path, chat.headers["x-mine"]) == ("POST", "/v1/chat/completions", "1")
    assert chat.json() == {"model": MODEL, "messages": HELLO}
    assert listed.query["purpose"] == "fine-tune"


def test_a_key_can_be_required() -> None:
    with FakeOpenAI(api_key="right") as api:
        assert client_of(api, "right").models.list().data
        with pytest.raises(openai.AuthenticationError):
            client_of(api, "wrong").models.list()


def test_an_observer_sees_a_request_before_and_after_it_is_carried_out(
    api: FakeOpenAI, client: openai.OpenAI
) -> None:
    seen = []
    api.observe = lambda moment, got: seen.append((moment, got.method, len(api.files)))
    uploaded(client)
    assert seen == [("arrived", "POST", 0), ("processed", "POST", 1)]


def test_a_stopped_server_refuses_and_starts_again_with_what_it_knew(
    api: FakeOpenAI, client: openai.OpenAI
) -> None:
    uploaded(client)
    before = api.base_url
    api.stop()
    with pytest.raises(openai.APIConnectionError):
        client.files.list()
    api.start()
    assert api.base_url == before
    assert len(client.files.list().data) == 1


def test_stopping_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    for _ in range(3):
        with FakeOpenAI() as api:
            client_of(api).models.list()
    assert threading.active_count() == before


def test_another_fake_only_needs_routes() -> None:
    class Silent(FakeServer):
        def routes(self) -> list[Any]:
            return []

    with Silent() as server, pytest.raises(openai.NotFoundError):
        openai.OpenAI(base_url=server.root, api_key="any", max_retries=0).models.list()
