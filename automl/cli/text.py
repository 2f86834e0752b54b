"""How values and events read on a screen."""

import shlex
from collections.abc import Mapping
from typing import Any


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def pairs(values: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in (values or {}).items())


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def study_line(event: Mapping[str, Any]) -> str:
    parts = ("space", "task", "trainer", "strategy", "pruner")
    said = ", ".join(f"{part} {event[part]}" for part in parts)
    return f"study {event['study']} in {event['storage']}: {said}"


def trial_line(event: Mapping[str, Any]) -> str:
    line = f"trial {event['number']:>3}  {event['state']:<8}"
    if event["error"]:
        return f"{line}  {event['error']}"
    line += f"  {pairs(event['values'])}"
    if event["reused_from"] is not None:
        return f"{line}  reused from trial {event['reused_from']} ({event['level']})"
    return f"{line}  in {duration(event['seconds'] or 0)}"


def summary_lines(event: Mapping[str, Any]) -> list[str]:
    share = event["reused"] / event["trials"] if event["trials"] else 0
    states = ", ".join(
        f"{event[s]} {s}" for s in ("complete", "pruned", "failed", "open") if event[s]
    )
    lines = [
        f"{event['trials']} trials ended ({states or 'none'}): {event['evaluated']} evaluated, "
        f"{event['reused']} reused ({share:.0%}), {duration(event['seconds'])} of training"
    ]
    if event["stopped"]:
        lines.append(f"stopped: {event['stopped']}")
    if event["best"]:
        best = event["best"]
        lines.append(f"best: trial {best['number']}, {pairs(best['values'])}")
        lines += decision_lines(best["decisions"])
    return lines


def next_lines(study: str, storage: str) -> list[str]:
    name = shlex.quote(study)
    return [
        "next:",
        f"  automl best {name}{storage}                 its metrics and decisions",
        f"  automl show {name}{storage}                 every trial",
        f"  automl resume {name}{storage} --trials 20   search on",
    ]


def decision_lines(decisions: Mapping[str, Any]) -> list[str]:
    width = max(map(len, decisions), default=0)
    return [f"  {name:<{width}}  {number(value)}" for name, value in decisions.items()]


def trial_details(event: Mapping[str, Any]) -> list[str]:
    lines = ["decisions:", *decision_lines(event["decisions"])]
    lines += [f"fingerprint: {event['fingerprint'] or '-'}, attempt {event['attempt']}"]
    lines += [f"step {r['step']:>3}  {pairs(r['metrics'])}" for r in event["reports"]]
    return lines + ((event["traceback"] or "").rstrip().splitlines())
