"""How fast is the math grader in its pool, and what does a case that hangs cost?

The mix imitates answers to MATH: mostly integers, then fractions, roots, polynomials, lists,
intervals and words; half of them right, of those half written differently; 16 answers a gold.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from drift_ray.errors import GradingError
from drift_ray.tasks.grading_pool import GradingPool

Pair = tuple[str, str]
ANSWERS_PER_GOLD = 16
DEADLINE_S = 2.0
# Three billion digits, and no guard knows it.
HANGING = r"9^{9 \cdot 9^{9}}"


def integer(rng: random.Random) -> list[str]:
    value = rng.randrange(2, 3000)
    return [str(value), f"{value}.0", f"x={value}", str(value + 1), str(-value)]


def fraction(rng: random.Random) -> list[str]:
    top, bottom = rng.randrange(1, 60), rng.choice([2, 4, 5, 8, 10])
    return [
        rf"\frac{{{top}}}{{{bottom}}}",
        str(top / bottom),
        f"{3 * top}/{3 * bottom}",
        f"{top + 1}/{bottom}",
        rf"\frac{{{bottom}}}{{{top}}}",
    ]


def root(rng: random.Random) -> list[str]:
    factor, radicand = rng.randrange(2, 30), rng.choice([2, 3, 5, 6, 7, 10])
    return [
        rf"{factor}\sqrt{{{radicand}}}",
        rf"\sqrt{{{factor * factor * radicand}}}",
        rf"\sqrt{{{radicand}}}\cdot {factor}",
        rf"{factor + 1}\sqrt{{{radicand}}}",
        rf"\sqrt{{{factor * radicand}}}",
    ]


def polynomial(rng: random.Random) -> list[str]:
    a, b = rng.randrange(1, 12), rng.randrange(1, 12)
    return [
        f"(x+{a})(x-{b})",
        f"x^2+{a - b}x-{a * b}".replace("+-", "-"),
        f"(x-{b})(x+{a})",
        f"x^2+{a + b}x-{a * b}",
        f"(x+{a})(x+{b})",
    ]


def solutions(rng: random.Random) -> list[str]:
    a, b = rng.sample(range(-40, 40), 2)
    return [f"{a}, {b}", f"{b},{a}", rf"x={a} \text{{ or }} x={b}", str(a), f"{a}, {b + 1}"]


def interval(rng: random.Random) -> list[str]:
    a = rng.randrange(-40, 40)
    b = a + rng.randrange(1, 30)
    return [f"[{a},{b})", f"[{a}, {b}.0)", f"[{a}, {2 * b}/2)", f"[{a},{b}]", f"({a},{b})"]


def words(rng: random.Random) -> list[str]:
    word = rng.choice(["east", "even", "Monday", "Evelyn"])
    return [rf"\text{{{word}}}", word, word.upper(), "none of them", "odd"]


KINDS: list[tuple[float, Callable[[random.Random], list[str]]]] = [
    (0.58, integer),
    (0.14, fraction),
    (0.08, root),
    (0.06, polynomial),
    (0.06, solutions),
    (0.04, interval),
    (0.04, words),
]


def mix(count: int, seed: int) -> list[Pair]:
    """Pairs of answer and gold; every kind gives the gold, two other forms of it, two errors."""
    rng = random.Random(seed)
    pairs: list[Pair] = []
    while len(pairs) < count:
        [kind] = rng.choices([kind for _, kind in KINDS], [share for share, _ in KINDS])
        gold, *others = kind(rng)
        for _ in range(ANSWERS_PER_GOLD):
            form = rng.choices([gold, *others], [0.25, 0.125, 0.125, 0.25, 0.25])[0]
            pairs.append((form, gold))
    rng.shuffle(pairs)
    return pairs[:count]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--answers", type=int, default=4000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/grading.json"))
    args = parser.parse_args(argv)
    started = time.perf_counter()
    rows: list[tuple[str, int, float]] = []
    with GradingPool("math", num_workers=args.workers, deadline_s=DEADLINE_S) as pool:
        start_s = time.perf_counter() - started
        pool.grade_many(mix(1000, seed=1))
        for name, pairs in [
            ("mix", mix(args.answers, seed=2)),
            ("mix, other seed", mix(args.answers, seed=3)),
            ("mix and one that hangs", [(HANGING, "1/7"), *mix(args.answers, seed=4)]),
        ]:
            began = time.perf_counter()
            results = pool.grade_many(pairs)
            rows.append((name, len(pairs), time.perf_counter() - began))
            failed = [each for each in results if isinstance(each, GradingError)]
            assert [each.cause for each in failed] == ["deadline"] * name.count("hangs")
    table = Table(title=f"grader math, {args.workers} processes, up in {start_s:.1f} s")
    for column in ("cases", "answers", "seconds", "answers/s"):
        table.add_column(column, justify="left" if column == "cases" else "right")
    for name, count, seconds in rows:
        table.add_row(name, f"{count:,}", f"{seconds:.1f}", f"{count / seconds:,.0f}")
    Console().print(table)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    results_json = [
        {"cases": name, "answers": count, "seconds": seconds} for name, count, seconds in rows
    ]
    args.out.write_text(
        json.dumps({"workers": args.workers, "start_s": start_s, "rows": results_json}, indent=2)
    )
    print(f"results in {args.out}")


if __name__ == "__main__":
    main(sys.argv[1:])
