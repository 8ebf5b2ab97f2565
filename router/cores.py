"""Follow a configuration that changes without losing a request.

Requests go to the newest core; those before it live until their last request has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import suppress

from kvatlas.common import limits
from kvatlas.common.clock import monotonic
from kvatlas.common.errors import ConfigError
from kvatlas.common.log import logger
from kvatlas.common.settings import Settings
from kvatlas.common.tasks import Supervisor
from kvatlas.router.core import Core, Shared, core
from kvatlas.router.prompts import Prompts

_LOG = logger("cores")

Reload = Callable[[bool], Settings | None]
"""Reads the configuration again, whatever it was before (True) or where it has changed (False)."""

_AT_START_ONLY = ("host", "port", "tls", "admin_host", "admin_port", "admin_tls")


class Cores:
    """The core that requests go to, and those before it that still have some.

    Args:
        shared: what all of them use.
        tasks: in which they live; one that dies takes the process with it.
    """

    def __init__(self, shared: Shared, tasks: Supervisor) -> None:
        self._shared = shared
        self._tasks = tasks
        self._living: dict[asyncio.Task[None], Core] = {}
        self.current: Core

    @property
    def living(self) -> int:
        """Count the cores: the newest, and those that still have requests."""
        return len(self._living)

    @property
    def open_requests(self) -> int:
        """Count the requests that all of them have under way."""
        return sum(core.desk.open_requests for core in self._living.values())

    async def idle(self) -> None:
        """Wait until none has a request, when no more can come."""
        for living in list(self._living.values()):
            await living.desk.idle.wait()

    async def start(self, settings: Settings) -> None:
        """Make the first core.

        Raises:
            ConfigError: the configuration cannot be used.
        """
        self.current = await self._make(settings, Prompts(settings.models))

    async def replace(self, settings: Settings) -> None:
        """Make a core of another configuration, and send requests there when it is ready.

        Raises:
            ConfigError: the configuration cannot be used; nothing has changed.
        """
        former = self.current
        if len(self._living) >= limits.CORES_MAX:
            # Each holds what its requests need: the one that has the fewest will be done first.
            await asyncio.wait(self._living, return_when=asyncio.FIRST_COMPLETED)
        prompts = await asyncio.to_thread(Prompts, settings.models, former.prompts)
        made = await self._make(settings, prompts)
        deadline = monotonic() + settings.router.probe_wait_s
        while made.readiness() is not None and monotonic() < deadline:  # noqa: ASYNC110 - it is a reading
            await asyncio.sleep(limits.CORE_LOOK_S)
        self.current = made
        former.identities.give_way(made.identities)
        former.is_retired.set()
        self._tell_what_stays(former.settings, settings)

    async def aclose(self) -> None:
        """End all, whatever they have under way."""
        for living in self._living.values():
            living.is_retired.set()
            living.desk.idle.set()
        if self._living:
            await asyncio.wait(self._living)

    async def follow(self, reload: Reload, hangup: asyncio.Event) -> None:
        """Make a core whenever the file changes, or somebody asks for it; for ever.

        Args:
            reload: reads the configuration.
            hangup: is set when it is to be read whether it has changed or not.
        """
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(limits.CONFIG_LOOK_S):
                    await hangup.wait()
            is_asked = hangup.is_set()
            hangup.clear()
            try:
                settings = await asyncio.to_thread(reload, is_asked)
                if settings is not None:
                    await self.replace(settings)
                    self._shared.metrics.config_good.set(1)
                    _LOG.info("config.changed", endpoints=len(settings.endpoints))
            except ConfigError as error:
                self._shared.metrics.config_good.set(0)
                _LOG.error("config.refused", faults=error.faults)

    async def _make(self, settings: Settings, prompts: Prompts) -> Core:
        made: asyncio.Future[Core] = asyncio.get_running_loop().create_future()
        task = self._tasks.start(self._live(settings, prompts, made), "core")
        found = await made
        self._living[task] = found
        task.add_done_callback(lambda ended: self._living.pop(ended, None))
        return found

    async def _live(self, settings: Settings, prompts: Prompts, made: asyncio.Future[Core]) -> None:
        try:
            async with contextlib.AsyncExitStack() as stack:
                running = await stack.enter_async_context(core(settings, prompts, self._shared))
                made.set_result(running)
                await running.is_retired.wait()
                await running.desk.idle.wait()
        except ConfigError as error:
            if made.done():
                raise
            made.set_exception(error)
            return
        finally:
            if not made.done():
                made.cancel()
        kept = {each.name for each in self.current.endpoints.all()}
        for endpoint in running.endpoints.all():
            if endpoint.name not in kept:
                self._shared.metrics.forget("endpoint", endpoint.name)

    def _tell_what_stays(self, former: Settings, settings: Settings) -> None:
        before, after = former.router.model_dump(), settings.router.model_dump()
        stays = [f"router.{name}" for name in _AT_START_ONLY if before[name] != after[name]]
        stays += ["log"] if former.log != settings.log else []
        if stays:
            _LOG.warning("config.needs_restart", settings=stays)
