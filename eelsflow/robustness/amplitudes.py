"""A range of amplitudes as a study file writes it: [start, stop, step]."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_AMPLITUDES = 1000
"""Steps of a robustness curve; each is another prediction of the whole test part (ours)."""


class AmplitudeRange(BaseModel):
    """Amplitudes from start to stop, both included, in equal steps."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    start: float
    stop: float
    step: Annotated[float, Field(gt=0)]

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            if len(value) != 3:
                raise ValueError(f"{list(value)} is not a range; write [start, stop, step]")
            return dict(zip(("start", "stop", "step"), value, strict=True))
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.stop < self.start:
            raise ValueError(f"range from {self.start} to {self.stop} is empty; write start <= stop")
        n_steps = (self.stop - self.start) / self.step
        if n_steps > MAX_AMPLITUDES:
            raise ValueError(
                f"range from {self.start} to {self.stop} has {n_steps:.0f} steps of {self.step}, and every model is "
                f"assessed at each; write a larger step, for at most {MAX_AMPLITUDES}"
            )
        return self

    @property
    def values(self) -> tuple[float, ...]:
        """The amplitudes."""
        n_steps = int((self.stop - self.start) / self.step + 1e-9)
        return tuple(round(self.start + number * self.step, 10) for number in range(n_steps + 1))
