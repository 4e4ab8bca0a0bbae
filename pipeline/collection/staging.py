"""The way of a batch's activations into host memory, in the stored precision.

| | rounded | crosses to the host |
|---|---|---|
| CPU | where it is | it is there |
| CUDA | on the device, so that fewer bytes cross the bus | through a ring of page-locked buffers, on a stream of its own, while the next batch computes |

A batch is staged by the thread that runs the forward, which does not wait for the copy, only for a free buffer;
another thread waits for it to arrive, takes the rows and gives the buffer back.

Letters: B contexts of a batch, L padded length, D width of the hook point.
"""  # noqa: E501 - a table has no other line ends

from __future__ import annotations

import queue
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.store.words import Words
from schemas.fields import Dtype

NUM_BUFFERS = 3
"""Page-locked buffers of a ring: one that the device fills, one that is emptied, one between them."""

_TORCH: dict[Dtype, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    # Lossy rows are rounded by the writer, which measures the loss against these values.
    "int8": torch.float32,
    "float8_e4m3": torch.float32,
}


@dataclass(frozen=True)
class Arrived:
    """A batch in host memory."""

    words: Mapping[str, Words]
    """Hook point -> [B, L, D], valid until the batch is released."""
    forward_s: float
    """Seconds that the forward took, on CPU with the rounding."""
    copy_s: float
    """Seconds that rounding and copying took on the device; 0 on CPU."""


class Staged(Protocol):
    """A batch on its way."""

    def wait(self) -> Arrived:
        """Return once the batch is in host memory. Errors of the device come out here."""

    def release(self) -> None:
        """The rows were taken, or nobody wants them; call it once."""


class Staging(Protocol):
    """What a forward hands its activations to. ``start`` and ``stage`` are called by one thread."""

    def start(self) -> Any:
        """Mark the beginning of a forward."""

    def stage(self, acts: Mapping[str, Tensor], started: Any) -> Staged:
        """Round and begin to copy activations [B, L, D]; ``started``: what ``start`` gave before their forward. Waits
        only while every buffer is in use."""


def open_staging(device: torch.device, dtype: Dtype) -> Staging:
    """The staging for activations on ``device`` that are stored as ``dtype``."""
    return PinnedRing(device, _TORCH[dtype]) if device.type == "cuda" else HostStaging(_TORCH[dtype])


@dataclass(frozen=True)
class HostStaging:
    """For a device whose tensors are in host memory already, or are fetched at once."""

    dtype: torch.dtype

    def start(self) -> float:
        return time.perf_counter()

    def stage(self, acts: Mapping[str, Tensor], started: float) -> Staged:
        words = {hook: _words(tensor.detach().to(self.dtype).cpu()) for hook, tensor in acts.items()}
        return _Here(Arrived(words, time.perf_counter() - started, 0.0))


@dataclass(frozen=True)
class _Here:
    arrived: Arrived

    def wait(self) -> Arrived:
        return self.arrived

    def release(self) -> None:
        pass


class PinnedRing:
    """Page-locked buffers that take turns, and the stream that copies into them.

    A buffer grows to the largest batch that it has met: batch_tokens x the widths of all hook points x the stored
    word. Activations stay on the device until their copy has arrived, of at most ``num_buffers`` batches.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, num_buffers: int = NUM_BUFFERS) -> None:
        self._device = device
        self._dtype = dtype
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._free: queue.Queue[Tensor] = queue.Queue()
        for _ in range(num_buffers):
            self._free.put(torch.empty(0, dtype=dtype, pin_memory=True))

    def start(self) -> torch.cuda.Event:
        return self._mark(torch.cuda.current_stream(self._device))

    def stage(self, acts: Mapping[str, Tensor], started: torch.cuda.Event) -> Staged:
        computed = self._mark(torch.cuda.current_stream(self._device))
        buffer = self._buffer(sum(tensor.numel() for tensor in acts.values()))
        try:
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(computed)
                begun = self._mark(self._stream)
                rounded = {hook: tensor.detach().to(self._dtype) for hook, tensor in acts.items()}
                host, end = {}, 0
                for hook, tensor in rounded.items():
                    host[hook] = buffer[end : (end := end + tensor.numel())].view(tensor.shape)
                    host[hook].copy_(tensor, non_blocking=True)
                copied = self._mark(self._stream)
        except BaseException:
            self._free.put(buffer)
            raise
        # The tensors of both streams are kept until the copy is over, so that neither stream reuses their memory.
        return _UnderWay(self._free, buffer, host, (dict(acts), rounded), (started, computed, begun, copied))

    def _mark(self, stream: torch.cuda.Stream) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        return event

    def _buffer(self, size: int) -> Tensor:
        """A free buffer of at least ``size`` words; waits for one."""
        buffer = self._free.get()
        if buffer.numel() >= size:
            return buffer
        try:
            return torch.empty(size, dtype=self._dtype, pin_memory=True)
        except BaseException:
            self._free.put(buffer)
            raise


@dataclass
class _UnderWay:
    free: queue.Queue[Tensor]
    buffer: Tensor
    host: dict[str, Tensor]
    on_device: tuple[Mapping[str, Tensor], ...]
    events: tuple[torch.cuda.Event, ...]

    def wait(self) -> Arrived:
        started, computed, begun, copied = self.events
        copied.synchronize()
        self.on_device = ()
        words = {hook: _words(tensor) for hook, tensor in self.host.items()}
        return Arrived(words, started.elapsed_time(computed) / 1e3, begun.elapsed_time(copied) / 1e3)

    def release(self) -> None:
        # Also of a batch that nobody waited for: the device may still be writing into the buffer.
        self.events[-1].synchronize()
        self.on_device = ()
        self.free.put(self.buffer)


def _words(tensor: Tensor) -> Words:
    """The stored form of a host tensor, sharing its memory."""
    words: Words = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return words
