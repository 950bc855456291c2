"""How a kernel is launched. No launch configuration may change a bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Launch:
    """Warps of a program and stages of its software pipeline."""

    warps: int = 4
    stages: int = 2

    def options(self) -> dict[str, Any]:
        """The compiler's options; floating-point fusion is off everywhere."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": False}
