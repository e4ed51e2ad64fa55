"""What the documents say of this checkout is so; and a document of which it is not is found out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.documents import ROOT, Document, all_documents, problems


@pytest.mark.parametrize("path", all_documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_symbols_commands_and_settings_exist(path: Path) -> None:
    assert problems(Document.read(path)) == []


def found(text: str) -> str:
    """The problems of a document in the root of the checkout."""
    return "\n".join(problems(Document(ROOT / "new.md", text)))


@pytest.mark.parametrize(
    "text",
    [
        "[jobs](jobs/README.md), [there](https://example.org/x#y), [here](#a-b--c), [2](#twice-1)\n"
        "# A `b` & [C](README.md)\n# Twice\n# Twice\n",
        "[`Episode.request`](drift_ray/rollout/episode.py) [`turn_seed()`](drift_ray/rollout/"
        "episode.py) [`Rules.seed`](drift_ray/rollout/episode.py)",
        "`make demo RUN=runs/x`, `drift-ray run … --dry-run`, `drift-ray run|weigh`, `rollout.py`",
        "`weighting.beta: {kl: 0.5}` `weighting.beta.kl` `replicas.num_replicas.min` `task.grader`",
        "`replicas.engine` `drift_ray/config/` `jobs/configs/*.yaml`",
        "```sh\nPYTHONPATH=. .venv/bin/drift-ray weigh runs/x --beta 1,2 \\\n"
        "    seed=1 &  # it's\n```",
        "```sh\nray job submit --working-dir . -- python jobs/weigh.py \\\n"
        "    --config mine.yaml run=s3://b/r\ntorchrun -m drift_ray.training mine.yaml seed=2\n```",
        "1. So:\n\n   ```yaml\n   rounds: {num_rounds: 2}\n   task: {grader: choice}\n   ```\n",
        "```yaml\napiVersion: v1\n```\n```json\n{}\n```\n```\n$ anything --at all\n```",
    ],
)
def test_what_is_right_passes(text: str) -> None:
    assert found(text) == ""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("so\n[it](jobs/none.md)", "new.md:2: link to jobs/none.md, which is not there"),
        ("[it](../README.md)", "link to ../README.md, which is not there"),
        ("# Here\n[it](#there)", "new.md:2: link to #there: no such heading"),
        ("[it](README.md#nowhere)", "no such heading"),
        ("[`Episode.go`](drift_ray/rollout/episode.py)", "defines no Episode.go"),
        ("`make demos`", "the Makefile knows no demos"),
        ("`make demo RUNS=x`", "the Makefile knows no RUNS"),
        ("`drift-ray weight x`", "drift-ray has no command weight"),
        ("`drift-ray run x --dry`", "No such option '--dry'"),
        ("`weighting.betta`", "there is no setting weighting.betta"),
        ("`seed` and `training.lora.rang: 3`", "there is no setting training.lora.rang"),
        ("`training.lore.rank`", "there is no setting training.lore.rank"),
        ("`training.learning_rate.first`", "there is no setting training.learning_rate.first"),
        ("`tests/benchmarks/none.py`", "there is no tests/benchmarks/none.py"),
        ("`python tests/benchmarks/weighting.py --row 1`", "weighting.py has no option --row"),
        ("`python -m drift_ray.train`", "there is no drift_ray.train"),
        ("```sh\nmake it\n```", "new.md:2: `make it`: the Makefile knows no it"),
        ("```sh\n# one\nmake \\\n  demo\nmake it\n```", "new.md:5: `make it`"),
        ("```sh\ndrift-ray run\n```", "Missing argument 'CONFIG.yaml'"),
        ("```sh\ndrift-ray inspect x --outcome lost\n```", "'lost' is not one of"),
        ("```sh\ndrift-ray run a.yaml weighting.betta=1\n```", "weighting.betta: unknown key"),
        ("```sh\ndrift-ray run a.yaml weighting.beta=-1\n```", "greater than 0"),
        ("```sh\ndrift-ray run jobs/configs/none.yaml\n```", "there is no jobs/configs/none.yaml"),
        ("```sh\nkubectl apply -k cluster/none\n```", "there is no cluster/none"),
        ("```sh\nray job submit -- python jobs/none.py\n```", "there is no jobs/none.py"),
        (
            "```sh\nray job submit -- python jobs/train.py --conf x.yaml\n```",
            "train.py has no option --conf",
        ),
        (
            "```sh\nray job submit -- python jobs/train.py --config x.yaml sed=1\n```",
            "sed: unknown key",
        ),
        ("```yaml\nrounds: {number: 2}\n```", "rounds.number: unknown key"),
        ("```yaml\nround: {num_rounds: 2}\n```", "round: unknown key"),
        ("```yaml\na: [\n```", "this yaml does not load"),
        ("```json\n{'a': 1}\n```", "this json does not load"),
    ],
)
def test_what_is_wrong_is_named(text: str, problem: str) -> None:
    assert problem in found(text)
