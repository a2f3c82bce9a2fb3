"""What to plan for, as one record. It imports little: the command line makes its options from it."""

from __future__ import annotations

from dataclasses import dataclass

from featcache.core.settings import setting


@dataclass(frozen=True)
class PlanOptions:
    """The workers and the storage of an extraction that is to come. See each field's help."""

    n_images: int = setting(1_000_000, "Images of the extraction.", ge=1, le=10**12)
    workers: int = setting(1, "Workers: processes that compute.", ge=1, le=100_000)
    workers_per_machine: int = setting(1, "Workers on one machine, which share its cores.", ge=1, le=1000)
    requests_per_s: float | None = setting(
        None, "Requests a second that the storage answers, for all workers together (default: any number).", gt=0
    )
    bandwidth_mb_s: float | None = setting(
        None, "Megabytes a second that the storage reads or writes, for all workers together (default: any).", gt=0
    )
    latency_ms: float = setting(0.0, "Time that the storage takes to answer a request.", ge=0, le=60_000)
    read_images: bool = setting(False, "Workers read the images from that storage, too, not from a faster one.")
    hours_between_losses: float | None = setting(
        None, "Mean time until a worker is lost, as spot machines are (default: none is).", gt=0
    )
    replaced_s: float = setting(120.0, "Time until another is there for a lost worker.", ge=0, le=1e6)
    slow_share: float = setting(0.0, "Share of workers that are slow.", ge=0, le=1)
    slow_factor: float = setting(3.0, "How many times as long as others these take.", ge=1, le=1000)
    price_worker_hour: float | None = setting(None, "Price of a worker's hour.", ge=0)
    price_gb_month: float | None = setting(None, "Price of a gigabyte stored for a month.", ge=0)
    price_million_writes: float | None = setting(None, "Price of a million writing requests.", ge=0)
    price_million_reads: float | None = setting(None, "Price of a million reading requests.", ge=0)
    sample_s: float = setting(10.0, "Time to measure a worker for on this machine.", gt=0, le=3600)
    trials: int = setting(5, "Simulated courses, where losses and slow workers make them differ.", ge=1, le=1000)
    plan_seed: int = setting(0, "Seed of the sample and the simulation.", ge=0)
