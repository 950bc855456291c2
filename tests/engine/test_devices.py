"""Which GPUs the replicas of one server take."""

from __future__ import annotations

import pytest

from samebits.config import EngineConfig, ModelConfig
from samebits.engine.devices import share_of, take_devices
from samebits.errors import ConfigError


class Driver:
    """Counts GPUs as the driver does: those that the environment names, of those that there are."""

    def __init__(self, there: int, environment: dict[str, str], follows: bool = True) -> None:
        self.there, self.environment, self.follows = there, environment, follows

    def __call__(self) -> int:
        named = self.environment.get("CUDA_VISIBLE_DEVICES", "")
        return len(named.split(",")) if named and self.follows else self.there


def taken(
    replica: int, replicas: int, degree: int, there: int, environment: dict[str, str], device: str = "auto"
) -> dict[str, str]:
    """The environment of a replica."""
    model = ModelConfig(tensor_parallel=degree, device=device)
    driver = Driver(there, environment)
    take_devices(model, EngineConfig(data_parallel=replicas), replica, driver, environment)
    return environment


@pytest.mark.parametrize(
    ("replicas", "degree", "names", "shares"),
    [
        (2, 1, None, ["0", "1"]),
        (2, 2, None, ["0,1", "2,3"]),
        (4, 1, "3,2,1,0", ["3", "2", "1", "0"]),
        (2, 2, "GPU-a, GPU-b, GPU-c, GPU-d", ["GPU-a,GPU-b", "GPU-c,GPU-d"]),
    ],
)
def test_every_replica_has_gpus_of_its_own(
    replicas: int, degree: int, names: str | None, shares: list[str]
) -> None:
    for replica, share in enumerate(shares):
        before = {} if names is None else {"CUDA_VISIBLE_DEVICES": names}
        assert taken(replica, replicas, degree, 4, before) == {"CUDA_VISIBLE_DEVICES": share}


def test_one_engine_and_engines_on_a_cpu_are_left_alone() -> None:
    assert taken(0, 1, 2, 4, {}) == {}
    assert taken(1, 2, 1, 0, {}) == {}
    assert taken(1, 2, 1, 4, {}, device="cpu") == {}


def test_too_few_gpus_are_refused() -> None:
    with pytest.raises(
        ConfigError, match="--data-parallel 3 with --tensor-parallel 2 takes 6 GPUs, and torch finds 4"
    ):
        taken(0, 3, 2, 4, {})
    with pytest.raises(ConfigError, match="takes 2 GPUs, and torch finds 1"):
        share_of(["7"], 0, 2, 1)


def test_a_driver_that_shows_all_the_same_is_refused() -> None:
    environment: dict[str, str] = {}
    with pytest.raises(ConfigError, match="does not follow CUDA_VISIBLE_DEVICES"):
        take_devices(
            ModelConfig(),
            EngineConfig(data_parallel=2),
            1,
            Driver(4, environment, follows=False),
            environment,
        )
