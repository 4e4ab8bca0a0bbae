"""ZipNN on chunks of bfloat16 words. Runs in the peers' environment, prints one JSON line.

Usage: zipnn_codec.py WORDS.npy CHUNK_ROWS PASSES THREADS
WORDS.npy is uint16 [rows, channels]. ZipNN reorders the buffer it compresses, so each pass gets copies, made untimed.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
from zipnn import ZipNN


def main() -> None:
    path, chunk_rows, passes, threads = sys.argv[1], *map(int, sys.argv[2:5])
    words = np.load(path)
    chunks = [words[first : first + chunk_rows].tobytes() for first in range(0, len(words), chunk_rows)]
    codec = ZipNN(bytearray_dtype="bfloat16", input_format="byte", threads=threads)
    encode_s, decode_s = [], []
    for _ in range(passes):
        buffers = [bytearray(chunk) for chunk in chunks]
        began = time.perf_counter()
        packed = [codec.compress(buffer) for buffer in buffers]
        between = time.perf_counter()
        for one in packed:
            codec.decompress(one)
        encode_s.append(between - began)
        decode_s.append(time.perf_counter() - between)
        assert all(bytes(codec.decompress(one)) == chunk for one, chunk in zip(packed, chunks, strict=True))
    size = sum(map(len, packed)) / words.nbytes
    print(json.dumps({"size": size, "encode_s": encode_s, "decode_s": decode_s}))


if __name__ == "__main__":
    main()
