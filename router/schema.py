"""Leave an index alone that a newer or older kvatlas writes in a form that is not ours.

During an upgrade indexers and routers differ. Whose index it is stands in one key; a router that
does not know its version goes by load and says so, until the version is its own again.
"""

from __future__ import annotations

import asyncio

from kvatlas.common import limits
from kvatlas.common.errors import IndexUnavailable
from kvatlas.common.keyspace import SCHEMA_VERSION
from kvatlas.common.log import logger
from kvatlas.router.lookup import BlockIndex

_LOG = logger("schema")


class SchemaWatch:
    """Look at the index's version now and then.

    Args:
        index: to be told whether it can be read.
    """

    def __init__(self, index: BlockIndex) -> None:
        self._index = index

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(limits.SCHEMA_LOOK_S)

    async def look(self) -> None:
        """Look once; what Redis does not say changes nothing."""
        try:
            found = await self._index.schema()
        except IndexUnavailable:
            return
        is_readable = found in {None, SCHEMA_VERSION}
        if is_readable == self._index.is_readable:
            return
        self._index.is_readable = is_readable
        if is_readable:
            _LOG.info("index.schema_known", ours=SCHEMA_VERSION)
        else:
            _LOG.error("index.schema_unknown", ours=SCHEMA_VERSION)
