"""The fakes of Together and Fireworks speak what these services' own Python clients speak."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from gateway.testing import FakeFireworks, FakeTogether

LLAMA = "meta-llama/Meta-Llama-3.1-8B-Instruct-Reference"
LLAMA_FIREWORKS = "accounts/fireworks/models/llama-v3p1-8b-instruct"
LINE = (
    b'{"messages": [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "delivery"}]}\n'
)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file of twelve training rows."""
    file = tmp_path / "rows.jsonl"
    file.write_bytes(12 * LINE)
    return file


def checked(answer: Any) -> Any:
    """The answer, once every field has been found to be of the type that the client declares for it."""
    type(answer).model_validate(answer.model_dump(by_alias=True, mode="json"))
    return answer


def test_the_client_of_together_uploads_tunes_and_reads_all_that_the_fake_says(rows: Path) -> None:
    together = (
        importlib.import_module("together") if _is_there("together") else pytest.skip("no package `together`")
    )
    with FakeTogether() as api:
        client = together.Together(api_key="any", base_url=api.root, max_retries=0)
        file = client.files.upload(rows, purpose="fine-tune")
        assert api.contents[file.id] == 12 * LINE
        while client.files.retrieve(file.id).processing_status != "COMPLETED":
            pass
        checked(client.files.retrieve(file.id))
        checked(client.files.list())
        job = client.fine_tuning.create(
            training_file=file.id, validation_file=file.id, model=LLAMA, n_epochs=2, n_evals=2, n_checkpoints=2,
            suffix="mine", lora=True,
        )  # fmt: skip
        checked(client.fine_tuning.list())
        while (shown := checked(client.fine_tuning.retrieve(job.id))).status != "completed":
            pass
        assert shown.x_model_output_name == f"account/{LLAMA}:mine:{job.id}"
        events = checked(client.fine_tuning.list_events(job.id)).data
        assert [event.type for event in events] == [
            "job_pending",
            "epoch_complete",
            "epoch_complete",
            "job_complete",
        ]
        assert [point.step for point in checked(client.fine_tuning.list_checkpoints(job.id)).data] == [12, 24]
        measured = checked(client.fine_tuning.list_metrics(job.id)).metrics
        assert measured[-1]["eval/loss"] == pytest.approx(0.55)
        other = client.fine_tuning.create(training_file=file.id, model=LLAMA)
        assert checked(client.fine_tuning.cancel(other.id)).status == "cancelled"
        with pytest.raises(together.BadRequestError, match="ended already"):
            client.fine_tuning.cancel(other.id)


def test_the_client_of_fireworks_uploads_tunes_loads_and_reads_all_that_the_fake_says(rows: Path) -> None:
    fireworks = importlib.import_module("fireworks") if _is_there("fireworks") else pytest.skip("no `fireworks-ai`")
    with FakeFireworks() as api:
        client = fireworks.Fireworks(api_key="any", account_id="acme", base_url=api.root, max_retries=0)
        about = {"user_uploaded": {}, "format": "CHAT", "example_count": "12"}
        checked(client.datasets.create(dataset_id="mine", dataset=about))
        with rows.open("rb") as content:
            checked(client.datasets.upload("mine", file=content))
        assert api.contents["mine"] == 12 * LINE
        while checked(client.datasets.get("mine")).state != "READY":
            pass
        jobs = client.supervised_fine_tuning_jobs
        dataset, model = "accounts/acme/datasets/mine", "accounts/acme/models/mine"
        jobs.create(dataset=dataset, base_model=LLAMA_FIREWORKS, epochs=2, output_model=model,
                    supervised_fine_tuning_job_id="mine")  # fmt: skip
        assert [checked(job).name for job in jobs.list()] == ["accounts/acme/supervisedFineTuningJobs/mine"]
        while (shown := checked(jobs.get("mine"))).state != "JOB_STATE_COMPLETED":
            pass
        assert (shown.output_model, shown.estimated_cost.units) == (model, "0")
        deployment = "accounts/acme/deployments/shared"
        loaded = checked(client.lora.load(model=model, deployment=deployment))
        assert loaded.state == "DEPLOYING"
        while (states := [checked(one).state for one in client.lora.list()]) != ["DEPLOYED"]:
            assert states == ["DEPLOYING"]
        jobs.create(dataset=dataset, base_model=LLAMA_FIREWORKS, supervised_fine_tuning_job_id="other",
                    output_model="accounts/acme/models/other")  # fmt: skip
        jobs.cancel("other", body={})
        assert jobs.get("other").state == "JOB_STATE_CANCELLED"
        with pytest.raises(fireworks.ConflictError):
            jobs.create(dataset=dataset, base_model=LLAMA_FIREWORKS, supervised_fine_tuning_job_id="other")


def _is_there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
