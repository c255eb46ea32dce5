"""Table I with 10,000 resamples against a loop around statsmodels, and a 100,000-judgement comparison of 8 methods.

Targets on 2 cores: agreement for 150 items × 5 raters × 3 columns under 2 s (four columns are computed: the asked and the
derived overall answer apart); rates with intervals, all 28 paired comparisons and the bold rule for 100,000 judgements under 10 s.
The same judgements are then timed as a user has them: a `Report` of stored records, its summary and groups, and `isr.compare`.
The peer is timed in the same run: Fleiss' κ alone, in one column, for 200 resamples, scaled to 10,000.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable

import numpy as np
import pandas as pd

from isr.comparing import compare
from isr.report import Report
from isr.schema import Answer, CaseRecord, Judgement, NoVerdict, Verdict
from isr.stats.agreement_table import agreement
from isr.stats.compare import rates_and_comparison

REPEAT = 3


def best(run: Callable[[], object], repeat: int) -> tuple[float, float]:
    """Smallest wall and CPU seconds of several runs."""
    walls, cpus = [], []
    for _ in range(repeat):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return min(walls), min(cpus)


def raters(n: int = 150) -> tuple[list[pd.DataFrame], list[pd.DataFrame]]:
    rng = np.random.default_rng(0)
    truth = rng.random((n, 2)) < (0.5, 0.4)
    frames = []
    for i in range(5):
        answers = np.where(rng.random((n, 2)) < 0.85, truth, ~truth)
        frame = pd.DataFrame({"rater": f"r{i}", "case_id": np.arange(n), "image_id": np.arange(n) % 75,
                              "semantic_mismatch": answers[:, 0], "degradation": answers[:, 1]})  # fmt: skip
        frames.append(frame.assign(overall=answers.any(axis=1)) if i < 3 else frame)
    return frames[:3], frames[3:]


def cases(judgements: int = 100_000, methods: int = 8, judges: int = 2, prompts: int = 6) -> pd.DataFrame:
    """One outcome per method, image and prompt under the strict consensus of two judges."""
    rng = np.random.default_rng(1)
    images = judgements // (methods * judges * prompts)
    image, prompt, method = (
        a.ravel() for a in np.meshgrid(np.arange(images), np.arange(prompts), np.arange(methods), indexing="ij")
    )
    rate = 0.4 + 0.05 * method + 0.3 * (rng.random(images) - 0.5)[image]
    votes = rng.random((len(image), judges)) < np.sqrt(rate)[:, None]
    missing = rng.random((len(image), judges)) < 0.01
    failed = (~votes & ~missing).any(axis=1)
    outcome = np.where(failed, "failure", np.where(missing.any(axis=1), "undetermined", "success"))
    return pd.DataFrame(
        {"method": np.char.add("method-", method.astype(str)), "image_id": np.char.add("image-", image.astype(str)),
         "prompt": np.char.add("prompt-", prompt.astype(str)), "seed": image, "editor": "e", "outcome": outcome}
    )  # fmt: skip


def stored(table: pd.DataFrame) -> Report:
    """The cases of `table` as a run of two judges, without pictures."""
    yes, no = (Verdict(semantic_mismatch=said, degradation=False) for said in (True, False))
    answers: dict[str, tuple[Answer, Answer]] = {
        "success": (yes, yes), "failure": (yes, no), "undetermined": (yes, NoVerdict(reason="refused"))
    }  # fmt: skip
    cases, judgements = [], []
    for number, row in enumerate(table.itertuples(index=False)):
        key = f"{number:032x}"
        cases.append(
            CaseRecord(case_id=key, prompt=row.prompt, edited=None, image_id=row.image_id, method=row.method,
                       editor=row.editor, prompt_kind="original", seed=row.seed)
        )  # fmt: skip
        judgements += [
            Judgement(case_id=key, judge=name, answer=answer)
            for name, answer in zip("ab", answers[row.outcome], strict=True)
        ]
    lock = {
        "judges": [{"name": name, "identity": {"provider": "function"}} for name in "ab"], "consensus": "strict",
        "settings": {}, "with_originals": True,
    }  # fmt: skip
    return Report(lock, cases, judgements)


def report_seconds(table: pd.DataFrame) -> dict[str, float]:
    """Seconds for the summary and the groups of a run of these judgements, and for comparing its methods, once each."""
    report = stored(table)
    told, told_cpu = best(lambda: (report.summary(), report.by("method")), 1)
    compared, compared_cpu = best(lambda: compare(report), 1)
    return {
        "report_seconds": told, "report_cpu_seconds": told_cpu, "report_compare_seconds": compared,
        "report_compare_cpu_seconds": compared_cpu,
    }  # fmt: skip


def loop_seconds(n_boot: int) -> float:
    """Fleiss' κ of three raters, bootstrapped over images by a loop around statsmodels: seconds for n_boot resamples."""
    from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa

    human, _ = raters()
    matrix = np.column_stack([f["degradation"].astype(int) for f in human])
    rows = [np.flatnonzero(np.arange(150) % 75 == g) for g in range(75)]
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    for _ in range(200):
        drawn = np.concatenate([rows[g] for g in rng.integers(0, 75, 75)])
        fleiss_kappa(aggregate_raters(matrix[drawn])[0])
    return (time.perf_counter() - start) * n_boot / 200


def main() -> None:
    human, mllm = raters()
    table = cases()
    agreed = best(lambda: agreement(human, mllm, n_boot=10_000), REPEAT)
    loop = loop_seconds(10_000)
    whole = report_seconds(table)
    compared = best(lambda: rates_and_comparison(table, n_boot=10_000), REPEAT)
    result = {
        "load_average": os.getloadavg()[0],
        "repeats": REPEAT,
        "agreement_items": 150,
        "agreement_raters": 5,
        "agreement_columns": 4,
        "resamples": 10_000,
        "agreement_seconds": agreed[0],
        "agreement_cpu_seconds": agreed[1],
        "statsmodels_loop_seconds_one_coefficient": loop,
        "loop_over_whole_table_ratio": loop / agreed[0],
        "comparison_judgements": 2 * len(table),
        "comparison_methods": 8,
        "comparison_pairs": 28,
        "comparison_seconds": compared[0],
        "comparison_cpu_seconds": compared[1],
        **whole,
        "agreement_under_2_seconds": agreed[0] < 2,
        "comparison_under_10_seconds": compared[0] < 10,
        "report_and_comparison_under_10_seconds": whole["report_seconds"] + whole["report_compare_seconds"] < 10,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
