"""Results that nobody measured: a plan that answers otherwise, a peer nobody compared, a void run, something missing."""

from typing import Any

import msgspec

from perf.results import (
    NUM_QUANTILES,
    Answers,
    Bound,
    Difference,
    Footprint,
    Limit,
    Load,
    Machine,
    Micro,
    Missing,
    Ratio,
    Results,
    Run,
    Stage,
    Wire,
)

HOSTILE = '<script src="https://example.org/x.js">alert(1)</script> & $x^2$ [red]'
CLOSED, CLOSED_8, ONE = Load(kind="closed", in_flight=32), Load(kind="closed", in_flight=8), Load(kind="sequential")
POISSON = Load(kind="poisson", rate=200.0)
TITLES = {
    "plan-one-torch": "Plan one, FastAPI and torch",
    "plan-one-engine": "Plan one, our engine",
    "plan-two": f"Plan two, {HOSTILE}",
    "plan-three": "Plan three, the caller does both hops",
    "plan-four": "Plan four, the gateway",
    "other": "Another server",
}
SPEED = {
    "plan-one-torch": 48.0,
    "plan-one-engine": 560.0,
    "plan-two": 150.0,
    "plan-three": 455.0,
    "plan-four": 470.0,
    "other": 90.0,
}
GROWTH = {"plan-one-torch": 1.0, "plan-one-engine": 1.0, "plan-two": 1.0, "plan-three": 0.02, "plan-four": 0.01}


def run_of(system: str, load: Load, round_: int = 0, **changes: Any) -> Run:
    num_heads = changes.get("num_heads", 1)
    speed = SPEED[system] / (1 + GROWTH.get(system, 0.0) * (num_heads - 1)) * (1 + 0.01 * round_)
    throughput = load.rate if load.kind in {"poisson", "bursts"} else speed * min(1.0, 0.4 + 0.02 * load.in_flight)
    middle = 1000 * load.in_flight / throughput if load.kind == "closed" else 700 / speed
    cpu = 1900 / speed
    parts = {"gateway": 0.4, "embedding": cpu - 0.7, "heads": 0.3} if system == "plan-four" else {"server": cpu}
    known: dict[str, Any] = {
        "system": system,
        "num_heads": num_heads,
        "workload": "short",
        "load": load,
        "round": round_,
        "seconds": 10.0,
        "throughput": throughput,
        "num_texts": int(throughput * 10),
        "latency_ms": {
            "mean": middle * 1.05,
            "p50": middle,
            "p90": middle * 1.4,
            "p99": middle * 2.2,
            "p99.9": middle * 3,
        },
        "quantiles_ms": tuple(middle * (0.5 + 2.5 * (place / (NUM_QUANTILES - 1)) ** 4) for place in range(NUM_QUANTILES)),
        "cpu_ms_per_text": {**parts, "load": 0.3},
    }
    return Run(**known | changes)


def void_run() -> Run:
    """Its latencies are 777 milliseconds, which nobody must see."""
    latencies = dict.fromkeys(("mean", "p50", "p90", "p99", "p99.9"), 777.0)
    quantiles = (777.0,) * NUM_QUANTILES
    return run_of(
        "plan-four", POISSON, latency_ms=latencies, quantiles_ms=quantiles, lag_p99_ms=31.0, void="the generator was late"
    )


def answers_of(system: str, num_heads: int = 1, num_differences: int = 0, **changes: Any) -> Answers:
    known: dict[str, Any] = {
        "system": system,
        "reference": "plan-one-engine",
        "num_heads": num_heads,
        "num_texts": 1_500,
        "num_labels": 1_500 * num_heads,
        "num_differences": num_differences,
        "least_agreement": 0.99,
        "accuracy": 0.83,
    }
    return Answers(**known | changes)


def results_of(**changes: Any) -> Results:
    """Plan two differs in a tenth of its labels; "other" was not compared at all."""
    runs = [
        *(run_of(system, load, round_) for round_ in range(3) for load in (CLOSED, CLOSED_8, ONE) for system in SPEED),
        *(run_of(system, CLOSED, num_heads=heads) for heads in (2, 8, 32) for system in GROWTH),
        *(run_of(system, POISSON) for system in ("plan-one-engine", "plan-three")),
        *(
            run_of(system, load, workload="mix")
            for load in (CLOSED, ONE)
            for system in ("plan-one-torch", "plan-one-engine", "plan-four")
        ),
        void_run(),
    ]
    differences = (Difference(place=4, head="spam", label=HOSTILE, reference="ham"),)
    known: dict[str, Any] = {
        "command": "python -m perf all",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "started": "2026-01-31T10:00:00Z",
        "ended": "2026-01-31T10:41:30Z",
        "machine": Machine(cpu="A processor", num_cores=2, memory_bytes=16 << 30, features=("avx2", "avx512_vnni")),
        "versions": {"python": "3.11.2", "onnxruntime": "1.31.0"},
        "settings": {"rounds": 3, "seconds": 10.0},
        "titles": TITLES,
        "price_per_hour": 0.1,
        "runs": tuple(runs),
        "bounds": tuple(
            Bound(
                system=system,
                num_heads=1,
                workload="short",
                bound_ms=50.0,
                throughput=rate,
                least_too_much=high,
                tried=((rate, 48.0),),
            )
            for system, rate, high in (("plan-one-torch", 0.0, 31.0), ("plan-four", 390.0, 510.0), ("plan-two", 110.0, None))
        ),
        "footprints": tuple(
            Footprint(system=system, num_heads=1, start_seconds=2.0 + place, rss_bytes={"server": (600 - 90 * place) * 10**6})
            for place, system in enumerate(SPEED)
        ),
        "wire": (Wire(system="plan-four", num_heads=1, workload="short", bytes_per_text=2_345.0),),
        "answers": (
            answers_of("plan-one-torch", num_differences=3),
            answers_of("plan-one-engine", accuracy=0.84),
            answers_of("plan-two", num_differences=150, differences=differences),
            answers_of("plan-three"),
            answers_of("plan-four"),
            answers_of("plan-four", 8),
        ),
        "waterfall": (
            Stage(name="request", ms=4.0),
            Stage(name="gateway", ms=3.6, inside="request"),
            Stage(name="preprocess", ms=0.2, inside="gateway"),
            Stage(name="embed", ms=2.4, inside="gateway"),
            Stage(name="inference", ms=1.9, inside="embed"),
            Stage(name="heads", ms=0.8, inside="gateway"),
        ),
        "ratios": (
            Ratio(
                title="Plan four over plan one",
                over="plan-four",
                under="plan-one-torch",
                what="texts/s",
                values=(9.6, 9.8, 9.9),
                goal="at least 8×",
                is_met=True,
            ),
            Ratio(
                title="32 heads",
                over="plan-one-torch",
                under="plan-four",
                what="CPU per text",
                values=(19.5, 21.0),
                goal="at least 24×",
                is_met=False,
            ),
            Ratio(title="Beside another server", over="plan-four", under="other", what="texts/s", values=()),
        ),
        "limits": (Limit(precision="int8", gflops=410.0, workload="short", texts_per_second=1_430.0),),
        "micro": (Micro(name="batch cut", microseconds=(4.1, 4.0, 4.4), cpu_microseconds=(4.0, 4.0, 4.2), note="64 entries"),),
        "missing": (Missing(what="infinity", why="its packages could not be installed: <b>no network</b>"),),
        "remarks": ("tensorflow_model_server is not on PATH: the embedded server was used.",),
    }
    return Results(**known | changes)


def without(results: Results, *systems: str) -> Results:
    """Nothing of *systems*."""
    kept = {
        name: tuple(each for each in getattr(results, name) if each.system not in systems)
        for name in ("runs", "bounds", "footprints", "wire", "answers")
    }
    return msgspec.structs.replace(results, **kept)
