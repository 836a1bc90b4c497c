"""What every test runs under: offline, quiet, and never in the user's own storage root."""

import atexit
import gc
import gzip
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))  # for what tests of several rooms share

from databases import (
    database,
    file_database,
    file_url,
    file_with_tables,
    new_url,
    postgres,
    ready_url,
    url,
)
from tiny import tiny_tokenizer

__all__ = [
    "database",
    "file_database",
    "file_url",
    "file_with_tables",
    "new_url",
    "postgres",
    "ready_url",
    "url",
]

_HOME = tempfile.mkdtemp(prefix="ftray-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)

# Libraries read these when they are imported, so they are set before any test module is.
os.environ |= {
    "FTRAY_HOME": _HOME,
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",  # two workers on two cores would otherwise fight
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}

# Once a test has run a command, all of ftray speaks at INFO: a line for each request of the others.
logging.getLogger("ftray.access").setLevel(logging.WARNING)


gc.disable()  # while all is imported: next to none of it is garbage, and looking takes seconds


def pytest_collection_finish() -> None:
    """Spare each later collection of garbage the 2 million objects of the imported libraries."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def collector() -> Iterator[tuple[str, list[Any]]]:
    """An OpenTelemetry collector: where it listens, and every span that it was sent."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    spans: list[Any] = []

    class Take(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers["content-encoding"] == "gzip":
                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *values: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Take) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", spans
        server.shutdown()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 2 layers with a byte-level tokenizer and a ChatML template; read only."""
    import torch  # late: half of the tests need no model
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.1,  # large enough that attention matters
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
