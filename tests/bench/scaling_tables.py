"""The results of scaling.py as tables."""

from rich.console import Console
from rich.table import Table
from scaling_forecast import ASSUMED_MFU, DEVICE
from scaling_runs import Figures

from ftray.train.traffic import LINKS


def print_tables(results: Figures) -> None:
    """Print all of a run's results."""
    console = Console(width=140)
    console.print(", ".join(f"{k} {v}" for k, v in results["machine"].items()), style="dim")
    before, after = results["load_before"], results["load_after"]
    console.print(f"load average before {before}, after {after}", style="dim")
    if links := results["links"]:
        speeds = ", ".join(
            f"{name} {links[name] / 1e9:.3g} GB/s"
            for name in ("all_reduce", "all_gather", "reduce_scatter")
        )
        console.print(
            f"links, {links['backend']}, each worker, {links['megabytes']:.0f} MB: {speeds}"
        )
        rates = ", ".join(f"{rate / 1e12:.3g}" for rate in links["multiplying"])
        console.print(f"large products on each, all at once, TFLOP/s: {rates}")
    console.print(_runs(results["runs"]))
    console.print(_survival(results["survived"]))
    for text in results["missing"]:
        console.print(f"missing: {text}", markup=False)
    console.print(_forecast(results["forecast"]))


def _runs(runs: list[Figures]) -> Table:
    heads = ("tokens/s a worker", "efficiency", "predicted", "sent a step, MB", "communication")
    table = Table("run", "workers", "step, s", *heads, "peak GiB", "loss differs by")
    for run in runs:
        sent = sum(run["sent"].values())
        table.add_row(
            run["run"],
            str(run["workers"]),
            f"{run['step_seconds']:.3f}",
            f"{run['per_worker']:,.0f}",
            _percent(run["efficiency"]),
            _range(run["predicted_efficiency"]),
            f"{sent / 1e6:,.2f}",
            _percent(run["communication"]),
            f"{run['peak_gib']:.1f}",
            _difference(run),
        )
    return table


def _survival(found: Figures | None) -> str:
    if found is None:
        return "faults: not tried"
    if "failed" in found:
        return f"faults: FAILED: {found['failed']}"
    return (
        f"faults: a worker of {found['workers']} killed after step {found['killed_after_step']}, "
        f"paused after step {found['paused_after_step']}, gone on with {found['then']}: "
        f"the loss curve differs by {_difference(found)}"
    )


def _forecast(lines: list[Figures]) -> Table:
    title = (
        f"forecast: {DEVICE}, MFU {ASSUMED_MFU:.0%} alone; efficiency if nothing is hidden – all"
    )
    table = Table("run", "workers", "computing, s", "sent a step, GB", *LINKS, title=title)
    for line in lines:
        cells = [_range(line["efficiency"][link]) for link in LINKS]
        computing, sent = f"{line['computing_seconds']:.2f}", f"{line['sent'] / 1e9:.2f}"
        table.add_row(line["run"], str(line["workers"]), computing, sent, *cells)
    return table


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _range(pair: tuple[float, float] | None) -> str:
    return "–" if pair is None else f"{pair[0]:.1%} – {pair[1]:.1%}"


def _difference(found: Figures) -> str:
    if "is_same" not in found:
        return "–"
    return f"{found['largest_difference']:.1e}" + ("" if found["is_same"] else " TOO MUCH")
