"""What this machine has, without importing torch or Ray."""

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Machine:
    """Cores, bytes of memory, and bytes of memory of each GPU."""

    cpus: int
    memory: int
    gpus: tuple[int, ...] = ()


def this_machine() -> Machine:
    """Look at this machine; a container's memory limit counts as its memory."""
    sizes, visible = gpu_memory(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        sizes = sizes[: len([name for name in visible.split(",") if name])]
    return Machine(os.cpu_count() or 1, min(psutil.virtual_memory().total, _limit()), sizes)


def gpu_memory() -> tuple[int, ...]:
    """Bytes of each GPU of this machine, also of those that this process may not use.

    It asks NVIDIA's management library, which needs no CUDA context and answers in milliseconds.
    """
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return ()  # no driver
    count = ctypes.c_uint(0)
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return ()
    sizes = tuple(_gpu_memory(nvml, index) for index in range(count.value))
    nvml.nvmlShutdown()
    return sizes


def _limit() -> int:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(path).read_text().strip() if Path(path).exists() else "max"
        if text != "max":
            return int(text)
    return 2**63


def _gpu_memory(nvml: ctypes.CDLL, index: int) -> int:
    device, memory = ctypes.c_void_p(), (ctypes.c_ulonglong * 3)()  # total, free, used
    nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device))
    nvml.nvmlDeviceGetMemoryInfo(device, memory)
    return int(memory[0])
