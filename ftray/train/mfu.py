"""Model FLOPs utilization (MFU): the share of a device's peak that the model's own work takes."""

from dataclasses import dataclass

import torch

from ftray.model.shape import ModelShape, flops_per_token

# Dense bf16 matrix FLOP/s, as the vendors' data sheets state them.
_PEAK_BF16 = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 5090": 210e12,
}


@dataclass(frozen=True)
class Speed:
    """Turns one device's tokens per second into its MFU; None where its peak isn't known."""

    flops_per_token: float
    peak: float | None

    @classmethod
    def of(
        cls, shape: ModelShape | None, device: torch.device, length: int, *, frozen_base: bool
    ) -> "Speed":
        """Look the device's peak up by its name; CPUs have none."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        if shape is None:
            return cls(0.0, None)
        flops = flops_per_token(shape, length, frozen_base=frozen_base)
        return cls(flops, peak_flops(name))

    def mfu(self, tokens_per_second: float) -> float | None:
        """Return the utilization, between 0 and 1."""
        return tokens_per_second * self.flops_per_token / self.peak if self.peak else None


def peak_flops(device_name: str) -> float | None:
    """Return the peak of a device by its name, longest match first; None if it isn't listed."""
    known = sorted(_PEAK_BF16, key=len, reverse=True)
    return next((_PEAK_BF16[name] for name in known if name in device_name), None)
