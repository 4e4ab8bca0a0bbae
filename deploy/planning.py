"""``headworks plan``: assumptions from file and options, and the plan in words."""

from __future__ import annotations

from deploy import show
from schemas.fields import about_bytes
from schemas.pipeline import AnyJob
from schemas.plan import CircuitPlan, Count, JobPlan, ModelPlan, Plan, PlanAssumptions, ReusePlan, StorePlan, TrainPlan
from workers.progress import clock_time

_SHOWN_DICTIONARIES = 12
"""Of a train job with many; ``--json`` has all."""


def plan(
    job: AnyJob, prices: str | None, *, tokens_per_s: float | None, flop_per_s: float | None, measured: bool
) -> Plan:
    """Options go before the file. Raises: as ``pipeline.planning.jobs.plan`` and ``read_assumptions``."""
    from pipeline.planning import jobs

    assumptions = jobs.read_assumptions(prices) if prices else PlanAssumptions()
    given = {
        name: rate
        for name, rate in {"tokens_per_s": tokens_per_s, "flop_per_s": flop_per_s}.items()
        if rate is not None
    }
    rates = assumptions.rates.model_copy(update=given)
    return jobs.plan(job, assumptions.model_copy(update={"rates": rates}), measured=measured)


def lines(found: Plan) -> list[str]:
    """For a terminal."""
    text: list[str] = []
    for job in found.jobs:
        text += [f"{job.name} ({job.kind}) -> {job.output}", *(f"  {line}" for line in _job(job, found.currency)), ""]
    shown = {"bytes to write": about_bytes(found.size_bytes), "objects": f"{found.objects:,}"}
    if found.hours is not None:
        shown["collecting"] = _hours(found.hours)
    if found.money is not None:
        shown["money"] = _money(found.money, found.currency)
    return [*text, *show.pairs(shown)]


def _job(job: JobPlan, currency: str) -> list[str]:
    shown: dict[str, str] = {}
    if job.store is not None:
        shown |= _store(job.store)
    if job.time is not None:
        shown["time"] = f"{_hours(job.time.hours)} at {job.time.tokens_per_s:,.0f} tokens/s ({job.time.basis})"
    if job.train is not None:
        shown |= _train(job.train)
    if job.model is not None:
        shown |= _model(job.model)
    if job.circuit is not None:
        shown |= _circuit(job.circuit)
    if job.money is not None:
        shown["money"] = _money(job.money, currency)
    if job.reuse is not None:
        shown["keeping it pays"] = _reuse(job.reuse, currency)
    return [*show.pairs(shown), *(f"note: {note}" for note in job.notes)]


def _store(store: StorePlan) -> dict[str, str]:
    facts = {"rows": f"{_count(store.rows)}, {store.missing_rows.value:,} to compute in {store.units:,} units"}
    if not store.units:
        return facts
    facts |= {
        "bytes": f"{about_bytes(store.size_bytes.value)} ({store.size_bytes.basis}), the store then "
        f"{about_bytes(store.total_bytes.value)}",
        "requests": f"{store.puts:,} PUT, {store.gets:,} GET, {store.lists:,} LIST",
    }
    for hook, size in store.bytes_per_hook_point.items():
        facts[hook] = f"[{store.hook_points[hook]}], {about_bytes(size)} in objects of " + about_bytes(
            store.object_bytes[hook]
        )
    if store.flop:
        facts["operations"] = f"{store.flop:.3g} FLOP, {store.flop / store.missing_rows.value:.3g} for each token"
    return facts | {"rows in memory": f"{about_bytes(store.unit_memory_bytes)} a worker, beside the model"}


def _train(train: TrainPlan) -> dict[str, str]:
    facts = {
        "rows": f"{_count(train.rows_per_epoch)} an epoch, {train.epochs:.3g} epochs, {train.steps:,} steps",
        "reads": f"{about_bytes(train.read_bytes)}, {train.gets:,} GET where the store is remote",
        **({"rows in Ray's object store": f"up to {about_bytes(train.block_bytes)}"} if train.block_bytes else {}),
        "memory of a rank": f"{about_bytes(train.memory_bytes)} for weights, gradients and optimiser, "
        f"{about_bytes(train.window_bytes)} for rows",
    }
    return facts | _dictionaries(train.dictionary_bytes)


def _model(model: ModelPlan) -> dict[str, str]:
    facts = {
        "model": f"{model.parameters:,} weights, {model.steps:,} steps, {model.tokens:,} tokens",
        "operations": f"{model.flop:.3g} FLOP",
        "model folders": f"{model.snapshots:,}, {about_bytes(model.size_bytes)} with the checkpoints",
        "memory of a rank": f"{about_bytes(model.memory_bytes)} for weights, gradients, optimiser and logits",
    }
    return facts if model.hours is None else facts | {"time": _hours(model.hours)}


def _circuit(circuit: CircuitPlan) -> dict[str, str]:
    facts = {
        "searches": f"{circuit.searches:,} of {circuit.nodes:,} nodes, {circuit.steps:,} steps in all",
        "passes": f"at most {circuit.tokens:,} tokens there and back, {circuit.measuring_tokens:,} forward alone",
        "operations": f"{circuit.flop:.3g} FLOP",
        "memory of a search": f"{about_bytes(circuit.memory_bytes)} for weights and nodes",
    }
    return facts if circuit.hours is None else facts | {"time": _hours(circuit.hours)}


def _dictionaries(sizes: dict[str, int]) -> dict[str, str]:
    """A line for each, of a long sweep for the first of them."""
    shown = list(sizes.items())[: _SHOWN_DICTIONARIES if len(sizes) > _SHOWN_DICTIONARIES + 1 else len(sizes)]
    facts = {f"  {name}": about_bytes(size) for name, size in shown}
    if rest := list(sizes)[len(shown) :]:
        facts[f"  and {len(rest)} more"] = f"{rest[0]} .. {rest[-1]}"
    return facts


def _reuse(found: ReusePlan, currency: str) -> str:
    parts = (
        f"collecting {_money(found.collect, currency)}, writing {_money(found.write, currency)}, keeping "
        f"{_money(found.keep, currency)}; a pass over the rows {_money(found.read, currency)} read, "
        f"{_money(found.collect, currency)} computed anew"
    )
    if found.break_even_reads is None:
        return f"never: {parts}"
    return f"from {found.break_even_reads:,} passes over the rows on ({parts})"


def _count(count: Count) -> str:
    error = f" +- {count.standard_error:.1%}" if count.standard_error else ""
    return f"{count.value:,} ({count.basis}{error})"


def _hours(hours: float) -> str:
    return clock_time(hours * 3600)


def _money(amount: float, currency: str) -> str:
    return f"{amount:,.2f} {currency}".strip()
