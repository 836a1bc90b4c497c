"""The command line of `vllm serve` for one base model."""

from pathlib import Path

from ftray.config.run import ModelConfig
from ftray.serve.vllm.base import VllmBase
from ftray.serve.vllm.client import SERVED_NAME
from ftray.serve.vllm.options import VllmOptions


def server_arguments(
    folder: Path, model: ModelConfig, options: VllmOptions, base: VllmBase, room: int
) -> list[str]:
    """Say what is not to be guessed; `room` is how many adapters stay in the server's memory."""
    spare = base.needs_nothing_adapter
    settings: dict[str, object] = {
        "--model": folder,
        "--served-model-name": SERVED_NAME,
        "--dtype": str(base.dtype).removeprefix("torch."),
        "--max-model-len": options.max_length or "auto",  # auto: what the memory holds
        "--max-num-seqs": options.rows,
        "--max-num-batched-tokens": options.prefill_tokens + options.rows,
        "--kv-cache-memory-bytes": options.kv_bytes,
        "--max-loras": options.active_adapters + spare,
        "--max-cpu-loras": room + spare,
        "--max-lora-rank": options.largest_rank,
        "--generation-config": "vllm",  # no sampling defaults of the model's: all are sent
        "--structured-outputs-config.backend": "guidance",  # as the embedded engine
    }
    flags = ["--enable-lora", "--disable-log-stats"]
    flags += ["--enforce-eager"] if options.eager else []
    flags += ["--trust-remote-code"] if model.trust_remote_code else []
    return [*(str(part) for pair in settings.items() for part in pair), *flags]
