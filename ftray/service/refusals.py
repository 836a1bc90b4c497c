"""What the service refuses, in OpenAI's words."""

from ftray.serve.openai.errors import ApiError, Kind

FILE_TOO_LARGE = Kind(413, "invalid_request_error", "file_too_large")
QUOTA = Kind(429, "rate_limit_error", "insufficient_quota")
WRONG_STATE = Kind(400, "invalid_request_error", "invalid_state")  # clients try a 409 again
_NO_FILE = Kind(404, "invalid_request_error", "file_not_found")
_NO_JOB = Kind(404, "invalid_request_error", "job_not_found")


def no_file(id: str, param: str = "id") -> ApiError:
    """Return the answer for a file that is not there, or not this project's."""
    return ApiError(_NO_FILE, f"no file '{id[:100]}'", param)


def no_job(id: str) -> ApiError:
    """Return the answer for a job that is not there, or not this project's."""
    return ApiError(_NO_JOB, f"no fine-tuning job '{id[:100]}'", "id")


def out_of_quota(what: str) -> ApiError:
    """Return the answer for what is more than the project's share: trying again is in vain."""
    message = f"the project's share is used up: {what}"
    return ApiError(QUOTA, message, headers={"x-should-retry": "false"})
