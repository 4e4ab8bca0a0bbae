"""The bf16 codec: any bits come back, equal words give equal bytes, hostile bytes are refused and never overrun."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from plain_bf16_decoder import decode as plain_decode

from pipeline.store import bf16_codec
from pipeline.store.bf16_zarr import Bf16Codec
from pipeline.store.checksums import crc32c_hex
from schemas.errors import CorruptionError

PLAIN, CODED = 0, 1


def activations(num_rows: int, width: int, seed: int = 0) -> np.ndarray:
    """Words of normal values with scales by row and channel and means by channel, as residual streams have them."""
    rng = np.random.default_rng(seed)
    scale = np.exp2(rng.normal(0, 0.5, (num_rows, 1)) + rng.normal(0, 1, width))
    values = (rng.standard_normal((num_rows, width)) + rng.normal(0, 0.5, width)) * scale
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def require_round_trip(words: np.ndarray) -> np.ndarray:
    payload = bf16_codec.encode(words)
    assert len(payload) <= 2 * words.size + 2
    assert bytes(payload) == bytes(bf16_codec.encode(words.copy(order="F")))
    got = bf16_codec.decode(payload, *words.shape)
    assert got.dtype == np.uint16
    np.testing.assert_array_equal(got, words)
    return payload


@settings(deadline=None, max_examples=200)
@given(words=hnp.arrays(np.uint16, st.tuples(st.integers(0, 40), st.integers(0, 40))))
def test_any_words_come_back(words: np.ndarray) -> None:
    require_round_trip(words)


@settings(deadline=None, max_examples=60)
@given(
    num_rows=st.integers(1, 90), width=st.integers(1, 90), seed=st.integers(0, 2**32 - 1),
    strange=hnp.arrays(np.uint16, 40), zero_rows=st.integers(0, 9), zero_channels=st.integers(0, 9),
)  # fmt: skip
def test_activations_with_strange_words_among_them_come_back_from_either_decoder(
    num_rows: int, width: int, seed: int, strange: np.ndarray, zero_rows: int, zero_channels: int
) -> None:
    words = activations(num_rows, width, seed)
    places = np.random.default_rng(seed).integers(0, words.size, len(strange))
    words.reshape(-1)[places] = strange
    words[:, width - zero_channels :] = 0
    words[num_rows - zero_rows :] = 0
    payload = require_round_trip(words)
    np.testing.assert_array_equal(plain_decode(bytes(payload), *words.shape), words)


def test_every_bit_pattern_comes_back_from_among_activations() -> None:
    """NaN payloads, infinities, denormals, zeros of both signs: tens of thousands of exceptions."""
    words = activations(2048, 512)
    words[::16] = np.arange(65536, dtype=np.uint16).reshape(128, 512)
    assert require_round_trip(words)[1] == CODED


@pytest.mark.parametrize("far", [0x0001, 0x0080, 0x7F7F, 0x7F80, 0xFFFF, 0x8000])
def test_scales_that_no_byte_tells_come_back(far: int) -> None:
    words = activations(200, 100)
    words[:, ::3] = far
    words[::5] = far
    require_round_trip(words)


def test_one_word_all_over_takes_one_bit_and_its_low_bits() -> None:
    words = np.full((512, 512), 0x3F81, dtype=np.uint16)
    assert len(require_round_trip(words)) < words.nbytes * 7 / 16 + 2048


def test_zeros_take_no_space() -> None:
    assert len(require_round_trip(np.zeros((1024, 64), dtype=np.uint16))) < 450
    words = activations(1024, 64)
    words[100:] = 0
    assert len(bf16_codec.encode(words)) == len(bf16_codec.encode(words[:100]))


def test_residual_streams_shrink_to_two_thirds_and_less() -> None:
    words = activations(1024, 576)
    assert len(require_round_trip(words)) < 0.66 * words.nbytes


def test_random_bits_grow_by_two_bytes() -> None:
    words = np.random.default_rng(0).integers(0, 65536, (300, 64), dtype=np.uint16)
    payload = require_round_trip(words)
    assert (payload[1], len(payload)) == (PLAIN, words.nbytes + 2)


def test_the_bytes_are_those_of_format_1() -> None:
    """Stores are kept for years: a change of these bytes is a new version."""
    rows, channels = np.indices((64, 48))
    words = ((0x3E80 + channels * 37 % 128 + rows * 5 % 256) ^ (rows * channels % 3 == 0) << 15).astype(np.uint16)
    words[3, 4], words[5, 6] = 0x7FC1, 0
    payload = require_round_trip(words)
    assert (len(payload), crc32c_hex(payload)) == (3351, "bdbdb755")


def test_threads_decode_side_by_side() -> None:
    words = [activations(128, 64, seed) for seed in range(16)]
    payloads = [bf16_codec.encode(one) for one in words]
    with ThreadPoolExecutor(4) as pool:
        for got, one in zip(pool.map(lambda p: bf16_codec.decode(p, 128, 64), payloads), words, strict=True):
            np.testing.assert_array_equal(got, one)


WORDS = activations(60, 50)
SOUND = bf16_codec.encode(WORDS)


def damaged(position: int, value: int, count: int) -> np.ndarray:
    payload = SOUND.copy()
    payload[position % len(SOUND) :][:count] = value
    return payload


@settings(deadline=None, max_examples=300)
@given(
    position=st.one_of(st.integers(0, 400), st.integers(0, 10**5)), value=st.integers(0, 255), count=st.integers(1, 300)
)
def test_damage_is_refused_or_gives_other_words_of_the_same_shape(position: int, value: int, count: int) -> None:
    try:
        got = bf16_codec.decode(damaged(position, value, count), *WORDS.shape)
    except CorruptionError:
        return
    assert (got.shape, got.dtype) == (WORDS.shape, WORDS.dtype)


@given(size=st.integers(0, len(SOUND) - 1), more=st.booleans())
def test_other_lengths_are_refused(size: int, more: bool) -> None:
    payload = np.concatenate([SOUND, SOUND[: size + 1]]) if more else SOUND[:size]
    with pytest.raises(CorruptionError, match="bf16 codec: expected"):
        bf16_codec.decode(payload, *WORDS.shape)


@pytest.mark.parametrize(
    ("at", "replacement", "message"),
    [
        (0, b"\2", "expected version 1, got 2"),
        (1, b"\2", "expected kind 0 or 1, got 2"),
        (1, b"\0", "expected 6002 bytes"),
        (4, b"\xff\xff\xff\xff", "expected at most 60 rows"),
        (4, b"\x3d", "expected at most 60 rows, got 61"),
        (8, b"\xff\xff\xff\xff", "bytes as its header says"),
        (12, b"\xff\xff\xff\x7f", "bytes as its header says"),
        (28 + 52 + 60, b"\0" * 256, "codes that end where their streams do"),
        (28 + 52 + 60, b"\x11" * 256, "complete prefix codes"),
        (28 + 52 + 60, b"\xff" * 256, "complete prefix codes"),
    ],
)
def test_hostile_headers_are_refused(at: int, replacement: bytes, message: str) -> None:
    payload = SOUND.copy()
    payload[at : at + len(replacement)] = np.frombuffer(replacement, dtype=np.uint8)
    with pytest.raises(CorruptionError, match=message):
        bf16_codec.decode(payload, *WORDS.shape)


def test_exceptions_beyond_the_words_are_refused() -> None:
    words = WORDS.copy()
    words[0, 0] = 0x7F80
    payload = bf16_codec.encode(words)
    payload[28 + 52 + 60 + 256 :][:4] = 0xFF
    with pytest.raises(CorruptionError, match="exceptions before place 3120"):
        bf16_codec.decode(payload, *words.shape)


@pytest.mark.slow
def test_no_loop_leaves_its_arrays_whatever_the_bytes(tmp_path: Path) -> None:
    """The same damage with every index checked by the compiler, which the loops do without."""
    script = """
import numpy as np, test_bf16_codec as own
from pipeline.store import bf16_codec
own.test_every_bit_pattern_comes_back_from_among_activations()
own.test_random_bits_grow_by_two_bytes()
for shape in ((1, 4), (3, 200), (200, 3), (65, 97)):
    own.require_round_trip(own.activations(*shape))
rng = np.random.default_rng(0)
for _ in range(3000):
    position = int(rng.integers(0, 500 if rng.random() < 0.7 else 10**5))
    payload = own.damaged(position, rng.integers(0, 256), rng.integers(1, 300))
    try:
        bf16_codec.decode(payload, *own.WORDS.shape)
    except own.CorruptionError:
        pass
"""
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    environment["PYTHONPATH"] = f"{Path(__file__).parent}:{Path(__file__).parents[3]}"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("shape", [(64,), (40, 64), (3, 20, 64), (2, 3, 5, 33)])
def test_zarr_writes_and_reads_arrays_of_any_rank(tmp_path: Path, shape: tuple[int, ...]) -> None:
    words = activations(int(np.prod(shape[:-1])), shape[-1]).reshape(shape)
    chunks = tuple(max(1, size // 2) for size in shape)
    array = zarr.create_array(
        str(tmp_path), shape=shape, dtype="uint16", chunks=chunks, serializer=Bf16Codec(), compressors=None
    )
    array[:] = words
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path), mode="r")[:], words)


def test_other_data_types_and_configurations_are_refused() -> None:
    with pytest.raises(ValueError, match="encodes bfloat16 words as uint16"):
        zarr.create_array({}, shape=(4, 4), dtype="int16", chunks=(4, 4), serializer=Bf16Codec())
    with pytest.raises(ValueError, match="without configuration"):
        Bf16Codec.from_dict({"name": "headworks.bf16", "configuration": {"level": 3}})


def test_plain_zarr_opens_a_store_by_the_registered_name(sample: Any, tmp_path: Path) -> None:
    """In a process that imports nothing of this package itself."""
    hook = "blocks.0.hook_mlp_in"
    one = sample(codec="bf16", widths={hook: 128}, chunk_rows=16, shard_rows=32)
    one.write_all(str(tmp_path / "store"))
    np.save(tmp_path / "words.npy", one.arrays[hook])
    script = (
        "import sys, numpy, zarr\n"
        "array = zarr.open_group(sys.argv[1], mode='r')[sys.argv[3]]\n"
        "numpy.testing.assert_array_equal(array[:], numpy.load(sys.argv[2]))\n"
    )
    command = [
        sys.executable,
        "-c",
        script,
        str(tmp_path / "store"),
        str(tmp_path / "words.npy"),
        f"activations/{hook}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    shard = tmp_path / "store" / "activations" / hook / "c" / "0" / "0"
    assert shard.read_bytes()[:2] == bytes([bf16_codec.VERSION, CODED])
    assert shard.stat().st_size < 0.9 * 2 * 32 * 128
