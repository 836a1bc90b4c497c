"""Files, jobs, events and checkpoints as OpenAI's client reads them."""

from collections.abc import Callable
from typing import TypeVar

from ftray.serve.openai.answers import Json
from ftray.service.events import event_id
from ftray.service.jobs import checkpoint_id
from ftray.service.pages import Page
from ftray.service.tables import CheckpointRow, EventRow, FileRow, JobRow

Row = TypeVar("Row")


def as_list(page: Page[Row], shown: Callable[[Row], Json]) -> Json:
    """Return a page; the client asks for the next one by the last id."""
    data = [shown(row) for row in page.rows]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    ends = {"first_id": first, "last_id": last}
    return {"object": "list", "data": data, "has_more": page.has_more, **ends}


def shown_file(row: FileRow) -> Json:
    """Return a file as OpenAI's client reads it."""
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.bytes,
        "created_at": int(row.created),
        "expires_at": None if row.expires is None else int(row.expires),
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
        "status_details": None,
    }


def shown_job(row: JobRow) -> Json:
    """Return a job as OpenAI's client reads it."""
    return {
        "id": row.id,
        "object": "fine_tuning.job",
        "created_at": int(row.created),
        "model": row.model,
        "organization_id": row.project,
        "status": row.status,
        "training_file": row.training_file,
        "validation_file": row.validation_file,
        "fine_tuned_model": row.tuned_model,
        "finished_at": None if row.finished is None else int(row.finished),
        "trained_tokens": row.trained_tokens,
        "estimated_finish": None,
        "error": row.error,
        "result_files": [] if row.result_file is None else [row.result_file],
        "user_provided_suffix": row.request["suffix"],
        "metadata": row.details,
        **{key: value for key, value in row.request.items() if key != "suffix"},
    }


def shown_event(row: EventRow) -> Json:
    """Return an event as OpenAI's client reads it."""
    return {
        "id": event_id(row),
        "object": "fine_tuning.job.event",
        "created_at": int(row.created),
        "level": row.level,
        "message": row.message,
        "type": row.type,
        "data": row.data,
    }


def shown_checkpoint(row: CheckpointRow) -> Json:
    """Return a checkpoint as OpenAI's client reads it."""
    return {
        "id": checkpoint_id(row),
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(row.created),
        "fine_tuned_model_checkpoint": row.model,
        "fine_tuning_job_id": row.job,
        "step_number": row.step,
        "metrics": row.metrics,
    }
