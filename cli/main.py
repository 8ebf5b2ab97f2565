"""The `kvatlas` command."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from kvatlas import __version__
from kvatlas.cli.console import faults_told, messages, output, read_lines, read_text
from kvatlas.cli.simulate import simulate
from kvatlas.common.settings import Settings, load

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
Engines = Annotated[int, typer.Option(min=1, max=64, help="Simulated engines.")]
Routers = Annotated[int, typer.Option(min=1, max=16, help="Routers.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Port = Annotated[int | None, typer.Option(help="Overrides the configured port.")]


class Policy(StrEnum):
    """How a router chooses, as `router.policy` names it."""

    PREFIX = "prefix"
    LEAST_LOAD = "least-load"
    ROUND_ROBIN = "round-robin"


def _overrides(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _serve(
    run: Callable[[Settings], int], config: Path | None, section: str, **changes: Any
) -> None:
    """Run a service; ends with its exit status, 78 for a wrong configuration."""
    with faults_told():
        raise typer.Exit(run(load(config, {section: _overrides(**changes)})))


@app.command()
def router(config: Config = None, port: Port = None, admin_port: Port = None) -> None:
    """Serve the OpenAI API and route each request to the best endpoint."""
    from kvatlas.common.reload import ConfigFile  # noqa: PLC0415 - `kvatlas --help` stays quick
    from kvatlas.router.app import run  # noqa: PLC0415 - alike

    changes = {"router": _overrides(port=port, admin_port=admin_port)}
    file = ConfigFile(config, changes) if config else None
    _serve(
        lambda settings: run(settings, file.read if file else None),
        config,
        "router",
        port=port,
        admin_port=admin_port,
    )


@app.command()
def picker(config: Config = None, port: Port = None, admin_port: Port = None) -> None:
    """Decide for a gateway: an endpoint picker for Envoy's external processing."""
    from kvatlas.common.reload import ConfigFile  # noqa: PLC0415 - `kvatlas --help` stays quick
    from kvatlas.router.picker_app import run  # noqa: PLC0415 - alike

    changes = {"picker": _overrides(port=port), "router": _overrides(admin_port=admin_port)}
    file = ConfigFile(config, changes) if config else None
    with faults_told():
        raise typer.Exit(run(load(config, changes), file.read if file else None))


@app.command()
def indexer(config: Config = None, admin_port: Port = None) -> None:
    """Follow the engines' KV events and keep the shared index."""
    from kvatlas.common.reload import ConfigFile  # noqa: PLC0415 - `kvatlas --help` stays quick
    from kvatlas.indexer.app import run  # noqa: PLC0415 - alike

    changes = {"indexer": _overrides(admin_port=admin_port)}
    file = ConfigFile(config, changes) if config else None
    _serve(
        lambda settings: run(settings, file.changed if file else None),
        config,
        "indexer",
        admin_port=admin_port,
    )


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

    _serve(run, config, "engine", port=port, events=events, replay=replay, model=model)


@app.command()
def up(
    engines: Engines = 4,
    routers: Routers = 2,
    policy: Annotated[Policy, typer.Option(help="How routers choose.")] = Policy.PREFIX,
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="First router's port if it is free; 0: any.")
    ] = 8080,
) -> None:
    """Run Redis, simulated engines, an indexer and routers, until Ctrl-C."""
    from kvatlas.cli.fleet import FleetPlan  # noqa: PLC0415 - `kvatlas --help` stays quick
    from kvatlas.cli.up import run_up  # noqa: PLC0415 - alike

    router = {"policy": policy.value, "debug_headers": True}
    plan = FleetPlan(engines=engines, routers=routers, router=router, port=port)
    with faults_told():
        raise typer.Exit(run_up(output(), messages(), plan))


@app.command()
def demo(
    *,
    engines: Engines = 4,
    routers: Routers = 2,
    conversations: Annotated[int, typer.Option(min=1, max=10_000)] = 48,
    turns: Annotated[int, typer.Option(min=1, max=100, help="Questions of each.")] = 4,
    users: Annotated[int, typer.Option(min=1, max=256, help="Conversations at a time.")] = 10,
    seed: Annotated[int, typer.Option(help="Of what is said.")] = 1,
) -> None:
    """Hold the same conversations with kvatlas, round robin and least load, and compare."""
    from kvatlas.cli.conversations import Load  # noqa: PLC0415 - `kvatlas --help` stays quick
    from kvatlas.cli.demo import run_demo  # noqa: PLC0415 - alike
    from kvatlas.cli.fleet import FleetPlan  # noqa: PLC0415 - alike

    load = Load(conversations=conversations, turns=turns, users=users, seed=seed)
    with faults_told():
        plan = FleetPlan(engines=engines, routers=routers)
        raise typer.Exit(run_demo(output(), messages(), load, plan))


@app.command()
def inspect(
    *,
    config: Config = None,
    redis: Annotated[str | None, typer.Option(help="URL; overrides the configured one.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    prompt: Annotated[
        Path | None, typer.Option(help="A request body: who holds how much of it; - for stdin.")
    ] = None,
    block: Annotated[str | None, typer.Option(help="A block hash: who holds it.")] = None,
    as_json: Json = False,
) -> None:
    """Show what the index holds, read from Redis and changing nothing."""
    from kvatlas.cli import inspect_index  # noqa: PLC0415 - `kvatlas --help` stays quick

    with faults_told():
        settings = load(config, {"redis": _overrides(url=redis)})
        text = None if prompt is None else read_text(prompt)
        question = inspect_index.Question(model=model, prompt=text, block=block)
        findings = inspect_index.find(settings, question)
        if as_json:
            typer.echo(inspect_index.as_json(findings))
        else:
            inspect_index.show(output(), findings)


@app.command()
def explain(
    body: Annotated[Path, typer.Argument(help="A request body, JSON; - for stdin.")],
    url: Annotated[str, typer.Option(help="A router's admin port.")] = "http://127.0.0.1:9090",
    path: Annotated[str, typer.Option(help="Where the body would go.")] = "/v1/chat/completions",
    as_json: Json = False,
) -> None:
    """Show what a router would decide for a request body, and why."""
    from kvatlas.cli.explain import ask_router, show  # noqa: PLC0415 - `kvatlas --help` stays quick

    with faults_told():
        answer = ask_router(url, path, read_text(body))
        if as_json:
            typer.echo(json.dumps(answer, indent=2))
        else:
            show(output(), answer)


@app.command()
def doctor(
    *,
    config: Config = None,
    router: Annotated[
        list[str] | None, typer.Option(help="A router's admin port; once for each router.")
    ] = None,
    indexer: Annotated[list[str] | None, typer.Option(help="An indexer's admin port.")] = None,
    send: Annotated[
        bool, typer.Option(help="Send each engine a request of one token, to see what it reports.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Check engines, events, index and services, and say what to do; exits 1 for a fault."""
    from kvatlas.cli import doctor as examination  # noqa: PLC0415 - `kvatlas --help` stays quick
    from kvatlas.cli.doctor_ask import Request  # noqa: PLC0415 - alike

    with faults_told():
        request = Request(tuple(router or ()), tuple(indexer or ()), may_send=send)
        report = examination.examine(load(config), request)
        if as_json:
            typer.echo(examination.as_json(report))
        else:
            examination.show(output(), report)
        raise typer.Exit(1 if report.faults else 0)


@app.command()
def render(
    config: Config = None,
    requests: Annotated[
        Path, typer.Argument(help='A line per request: {"path": ..., "body": {...}}; - for stdin.')
    ] = Path("-"),
) -> None:
    """Write the token ids and the text that each request becomes, a line of JSON each."""
    from kvatlas.cli.render import render_lines  # noqa: PLC0415 - `kvatlas --help` stays quick

    with faults_told():
        for line in render_lines(load(config), read_lines(requests)):
            typer.echo(line)


@app.command(name="fetch-tokenizer")
def fetch_tokenizer(
    model: Annotated[str, typer.Option(help="Id on the hub.")],
    revision: Annotated[str, typer.Option(help="Commit, so that it never changes.")],
    out: Annotated[Path, typer.Option(help="Folder to put it into.")],
) -> None:
    """Fetch a tokenizer from the hub into a folder; HF_TOKEN is used when set."""
    from kvatlas.common.prompt import fetch_tokenizer as fetch  # noqa: PLC0415 - alike

    with faults_told(), messages().status(f"fetching {model}"):
        fetch(model, revision, out)


@app.command(name="hash-key")
def hash_key(
    tenant: Annotated[str, typer.Argument(help="Whose key it is.")],
    key_file: Annotated[
        Path | None, typer.Option(help="File with the key, - for stdin; without it one is made.")
    ] = None,
) -> None:
    """Print an API key's line for the file of keys; a new key itself goes to standard error."""
    from kvatlas.cli.hash_key import line_of, new_key  # noqa: PLC0415 - `kvatlas --help` stays quick

    with faults_told():
        key = new_key() if key_file is None else read_text(key_file).strip()
        line = line_of(key, tenant)
    typer.echo(line)
    if key_file is None:
        typer.echo(key, err=True)


@app.command(name="check-config")
def check_config(config: Config = None) -> None:
    """Check a configuration and say every fault in it; exits 78 when there is one."""
    from kvatlas.router.access import check_keys  # noqa: PLC0415 - alike
    from kvatlas.router.profiles import build_profile  # noqa: PLC0415 - alike

    with faults_told():
        settings = load(config)
        build_profile(settings.router)
        if settings.router.api_keys_file:
            check_keys(settings.router.api_keys_file)
    typer.echo(f"fine: {len(settings.models)} models, {len(settings.endpoints)} endpoints")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


app.command()(simulate)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
