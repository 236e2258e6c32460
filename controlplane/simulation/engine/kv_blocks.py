"""The KV cache as vLLM pages it: blocks that are free, in use, or kept for a prompt that may come again."""

from collections.abc import Sequence


class BlockPool:
    """Counts blocks; only blocks that hold a full piece of a prompt have an identity, their prefix key.

    A prefix block is shared by all who use it and, once nobody does, stays until its space is needed: the least
    recently used goes first. Differs from vLLM in one point: blocks that never held a prefix are taken before any
    idle prefix block is dropped.
    """

    def __init__(self, blocks_total: int) -> None:
        assert blocks_total > 0, "a pool has at least one block"
        self.blocks_total = blocks_total
        self._free = blocks_total
        self._users: dict[int, int] = {}
        """Users of each prefix block in use."""
        self._idle: dict[int, None] = {}
        """Prefix blocks that nobody uses, least recently used first."""

    @property
    def available(self) -> int:
        """Blocks that can be had now, idle prefix blocks included."""
        return self._free + len(self._idle)

    @property
    def used(self) -> int:
        return self.blocks_total - self.available

    def hits(self, keys: Sequence[int], limit: int) -> int:
        """How many of the leading `keys` (at most `limit`) are cached."""
        users, idle = self._users, self._idle
        for index, key in enumerate(keys):
            if index >= limit or (key not in users and key not in idle):
                return index
        return len(keys)

    def acquire(self, cached: Sequence[int], fresh: int) -> bool:
        """Take `fresh` new blocks and share the `cached` ones; False, and nothing changed, when there is no room."""
        waking = sum(1 for key in cached if key in self._idle)
        if fresh + waking > self.available:
            return False
        for key in cached:
            self._idle.pop(key, None)
            self._users[key] = self._users.get(key, 0) + 1
        self._take(fresh)
        return True

    def publish(self, key: int) -> bool:
        """Turn one block of the caller into the shared block `key`. False when another one holds that prefix already.

        True: the caller owns one nameless block less and is a user of `key`.
        """
        if key in self._users or key in self._idle:
            return False
        self._users[key] = 1
        return True

    def release(self, shared: Sequence[int], nameless: int) -> None:
        """Give back; the tail of a prompt becomes idle first, so that it is also dropped first."""
        self._free += nameless
        for key in reversed(shared):
            users = self._users[key] - 1
            if users:
                self._users[key] = users
            else:
                del self._users[key]
                self._idle[key] = None

    def forget_idle(self) -> None:
        """Drop every prefix block that nobody uses (an engine that sleeps loses its cache)."""
        self._free += len(self._idle)
        self._idle.clear()

    def _take(self, blocks: int) -> None:
        from_free = min(blocks, self._free)
        self._free -= from_free
        for _ in range(blocks - from_free):
            del self._idle[next(iter(self._idle))]
