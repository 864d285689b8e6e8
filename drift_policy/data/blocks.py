"""Walking over the rows of a large array in pieces that fit in memory."""

import math
from collections.abc import Iterator

BLOCK_BYTES = 16 * 2**20


def row_blocks(n_rows: int, row_bytes: int, multiple: int = 1) -> Iterator[slice]:
    """Yield slices that cover `n_rows` in order, each about BLOCK_BYTES and a multiple of `multiple` rows long.

    `row_bytes` is the size of one row in bytes; the last slice may be shorter. A `multiple` of the chunk length of a
    stored array lets every chunk be decoded once.
    """
    rows = max(1, BLOCK_BYTES // max(1, row_bytes))
    rows = math.ceil(rows / multiple) * multiple
    for start in range(0, n_rows, rows):
        yield slice(start, min(start + rows, n_rows))
