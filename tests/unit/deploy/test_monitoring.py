"""Rules and panels name only metrics that /metrics or training has, and labels that these carry."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from ftray.serve.openai.metrics import Metrics
from ftray.serve.protocol import EngineStats
from ftray.train.gauges import OF_LINES, OF_RUNS, metric_name

DEPLOY = Path(__file__).parents[3] / "deploy"
WORDS = {  # of PromQL itself
    *("sum", "by", "rate", "histogram_quantile", "absent", "le", "increase", "max", "min"),
    *("changes", "max_over_time", "min_over_time"),
    "__rate_interval",
}


@pytest.fixture(scope="module")
def exposed() -> dict[str, set[str]]:
    """What scrapes show once each metric has been used: names, and the labels of each."""
    metrics = Metrics()
    metrics.requests.labels("m", "1", "200").inc()
    metrics.prompt_tokens.labels("m", "1").inc()
    metrics.answer_tokens.labels("m", "1").inc()
    metrics.refusals.labels("x").inc()
    metrics.cancels.labels("m").inc()
    metrics.shadows.labels("1", "dropped").inc()
    metrics.first_token.labels("m").observe(1)
    metrics.between_tokens.labels("m").observe(1)
    stats = EngineStats(*range(len(EngineStats.__annotations__)))
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.text(stats).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found | {metric_name(key): {"run"} for key in (*OF_LINES, *OF_RUNS)}


def test_rules_name_only_metrics_that_exist(exposed: dict[str, set[str]]) -> None:
    rules = list(rules_of())
    recorded = {rule["record"]: {"model"} for rule in rules if "record" in rule}
    for rule in rules:
        check(rule["expr"], exposed | recorded)


def test_every_alert_says_what_to_do() -> None:
    alerts = [rule for rule in rules_of() if "alert" in rule]
    assert len({rule["alert"] for rule in alerts}) == len(alerts) >= 6
    for rule in alerts:
        assert rule["annotations"].keys() == {"summary", "action"}
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert re.fullmatch(r"\d+m", rule["for"])


def test_panels_name_only_metrics_that_exist(exposed: dict[str, set[str]]) -> None:
    dashboard = json.loads((DEPLOY / "grafana/ftray.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    used = set()
    for panel in panels:
        for target in panel["targets"]:
            used |= check(target["expr"], exposed)
            labels = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert labels <= set().union(*(exposed[name] for name in used))
    unused = {name for name in exposed if not name.endswith(("_created", "_bucket", "_sum"))}
    missing = {name for name in unused - used if not name.endswith("_count")}
    assert missing <= {  # counted elsewhere on the page, or of no use on it
        *("ftray_engine_adapters", "ftray_engine_load_seconds_total"),
        *("ftray_engine_prompt_tokens_total", "ftray_engine_answer_tokens_total"),
        "ftray_engine_cancelled_total",
    }


def check(expression: str, known: dict[str, set[str]]) -> set[str]:
    """Return the metrics of an expression; fails on one that does not exist, or on its labels."""
    outside = re.sub(r'"[^"]*"|\[[^]]*\]', " ", expression)
    names = set(re.findall(r"(?<![\w.$])[a-z][\w:]*", outside)) - WORDS
    labels = {
        name for part in re.findall(r"by \(([^)]*)\)", outside) for name in re.split(r"\W+", part)
    }
    labels |= set(re.findall(r"[{,]\s*(\w+)=", outside))
    metrics = names - labels
    assert metrics
    assert metrics <= known.keys(), expression
    assert labels <= {"le"}.union(*(known[name] for name in metrics)), expression
    return metrics


def rules_of() -> Iterator[dict]:
    tree = yaml.safe_load((DEPLOY / "prometheus/ftray.rules.yaml").read_text())
    for group in tree["groups"]:
        yield from group["rules"]
