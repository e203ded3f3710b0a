"""Parts of a run for several processes or machines; the questions about one image stay together."""

import hashlib
import re
from typing import NamedTuple

from vlm.errors import VLMError


class Shard(NamedTuple):
    """One of `count` parts."""

    index: int
    """From 1 to `count`."""
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Return the shard that "index/count" names."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        shard = cls(int(found[1]), int(found[2])) if found else None
        if shard is None or not 1 <= shard.index <= shard.count:
            raise VLMError(
                "invalid_request", f"shard is {text[:40]!r}; expected INDEX/COUNT with INDEX from 1 to COUNT, as 1/4"
            )
        return shard

    def holds(self, cluster: str) -> bool:
        """Return whether the samples of `cluster` are this shard's; of all shards of a count exactly one says yes."""
        digest = hashlib.sha256(cluster.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index - 1
