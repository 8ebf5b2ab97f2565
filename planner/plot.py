"""Draw outcomes with matplotlib, which is an extra."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvatlas.common.errors import ConfigError
from kvatlas.planner.simulation import Outcome


def draw(path: Path, outcomes: Mapping[str, Outcome]) -> None:
    """Write a picture: how TTFT is distributed, what each endpoint computed.

    Args:
        path: of the picture; its ending says the format.
        outcomes: by policy.

    Raises:
        ConfigError: the operator's; matplotlib is missing, or the file cannot be written.
    """
    plots = _pyplot()
    picture, (left, right) = plots.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for name, outcome in outcomes.items():
        waits = sorted(each.began_s - each.job.at_s for each in outcome.served)
        left.plot(waits, [n / len(waits) for n in range(1, len(waits) + 1)], label=name)
        right.plot(sorted(outcome.prefilled, reverse=True), label=name)
    left.set(xscale="log", xlabel="time to first token (s)", ylabel="share of requests")
    right.set(xlabel="endpoint, the busiest first", ylabel="prompt tokens computed", ylim=(0, None))
    left.legend()
    try:
        picture.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError([f"--plot {path}: {error}"]) from None
    finally:
        plots.close(picture)


def _pyplot() -> Any:
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an extra, loaded where a picture is asked for
    except ImportError:
        raise ConfigError(
            ["--plot: needs matplotlib: python -m pip install 'kvatlas[plot]'"]
        ) from None
    # No window, whatever the desktop is.
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - alike

    return plt
