"""The `kvatlas` command."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from kvatlas import __version__
from kvatlas.common.errors import ConfigError
from kvatlas.common.settings import Settings, load
from kvatlas.common.tasks import EX_CONFIG

app = typer.Typer(
    name="kvatlas",
    help="Route chat requests to the vLLM engine that already holds their prefix.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="The YAML file; docs/CONFIG.md explains it.")
]
Port = Annotated[int | None, typer.Option(help="Overrides the configured port.")]


def settings_or_exit(path: Path | None, overrides: dict[str, Any] | None = None) -> Settings:
    """Read the configuration, or print every fault in it and exit with 78."""
    try:
        return load(path, overrides)
    except ConfigError as error:
        for fault in error.faults:
            typer.echo(f"kvatlas: {fault}", err=True)
        raise typer.Exit(EX_CONFIG) from None


def _overrides(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _serve(run: Callable[[Settings], int], settings: Settings) -> None:
    raise typer.Exit(run(settings))


@app.command()
def router(config: Config = None, port: Port = None, admin_port: Port = None) -> None:
    """Serve the OpenAI API and route each request to the best endpoint."""
    from kvatlas.router.app import run  # noqa: PLC0415 - `kvatlas --help` stays quick

    changes = _overrides(port=port, admin_port=admin_port)
    _serve(run, settings_or_exit(config, {"router": changes}))


@app.command()
def indexer(config: Config = None, admin_port: Port = None) -> None:
    """Follow the engines' KV events and keep the shared index."""
    from kvatlas.indexer.app import run  # noqa: PLC0415 - `kvatlas --help` stays quick

    _serve(run, settings_or_exit(config, {"indexer": _overrides(admin_port=admin_port)}))


@app.command()
def engine(
    config: Config = None,
    port: Port = None,
    events: Annotated[str | None, typer.Option(help="ZMQ address to publish on.")] = None,
    replay: Annotated[str | None, typer.Option(help="ZMQ address of the replay socket.")] = None,
    model: Annotated[str | None, typer.Option(help="Name of one of the models.")] = None,
) -> None:
    """Run a simulated engine that behaves like vLLM."""
    from kvatlas.simulator.app import run  # noqa: PLC0415 - `kvatlas --help` stays quick

    changes = _overrides(port=port, events=events, replay=replay, model=model)
    _serve(run, settings_or_exit(config, {"engine": changes}))


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    sys.exit(main())
