"""Jobs of a Ray cluster: a command that runs there to its end, watched from elsewhere over HTTP.

An address is that of the cluster's dashboard, as http://127.0.0.1:8265. Its token is Ray's:
RAY_AUTH_TOKEN, or the file that RAY_AUTH_TOKEN_PATH names. Jobs run once: who submits them retries.
"""

from ftray.jobs.holdings import SERVING, Capacity, Holding, capacities, holdings
from ftray.jobs.job import JobInfo, JobSpec, State
from ftray.jobs.ray_jobs import find, here, list_jobs, logs, ray_version, stop, submit, unknown_job

__all__ = [
    "SERVING",
    "Capacity",
    "Holding",
    "JobInfo",
    "JobSpec",
    "State",
    "capacities",
    "find",
    "here",
    "holdings",
    "list_jobs",
    "logs",
    "ray_version",
    "stop",
    "submit",
    "unknown_job",
]
