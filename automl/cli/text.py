"""How values and events read on a screen."""

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from automl.studies import Study


def json_line(event: Mapping[str, Any]) -> str:
    """An event as JSON; NaN and infinities, which JSON has not, as null."""
    try:
        return json.dumps(event, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(event))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


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
    parts = ("space", "task", "trainer", "judge", "strategy", "pruner")
    said = ", ".join(f"{part} {event[part]}" for part in parts if event[part])
    return f"study {event['study']} in {event['storage']}: {said}"


def trial_line(event: Mapping[str, Any]) -> str:
    line = f"trial {event['number']:>3}  {event['state']:<8}"
    if event["error"]:
        return f"{line}  {event['error']}"
    line += f"  {pairs(event['values'])}"
    if event["reused_from"] is not None:
        other = f" of {event['reused_study']}" if "reused_study" in event else ""
        return f"{line}  reused from trial {event['reused_from']}{other} ({event['level']})"
    judges = f"  judges trial {event['judges']}" if "judges" in event else ""
    return f"{line}  in {duration(event['seconds'] or 0)}{judges}"


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
        lines += all_decision_lines(best)
    return lines


def next_lines(study: "Study") -> list[str]:
    """What a person may type next, with what each line shows."""
    lines = {
        study.command("best"): "its metrics and decisions",
        study.command("show"): "every trial",
        study.command("resume", "--trials 20"): "search on",
    }
    width = max(map(len, lines))
    return ["next:", *(f"  {line:<{width}}   {shows}" for line, shows in lines.items())]


def decision_lines(decisions: Mapping[str, Any]) -> list[str]:
    width = max(map(len, decisions), default=0)
    return [f"  {name:<{width}}  {number(value)}" for name, value in decisions.items()]


def all_decision_lines(event: Mapping[str, Any]) -> list[str]:
    """A trial's decisions, and those that its trainer found."""
    found = event.get("closed") or {}
    said = {name: f"{number(value)}  (found by the trainer)" for name, value in found.items()}
    return decision_lines({**event["decisions"], **said})


def _probe_lines(known: Mapping[str, Any]) -> list[str]:
    """What a probe said of a trial's function, or why there was none."""
    if "verdict" in known:
        reason = f": {known['reason']}" if "reason" in known else ""
        return [f"probe: {known['verdict']}{reason}"]
    return [f"not probed: {known['skipped']}"] if "skipped" in known else []


def trial_details(event: Mapping[str, Any]) -> list[str]:
    lines = ["decisions:", *all_decision_lines(event)]
    attempt = f"attempt {event['attempt']} on {event['device'] or 'no device'}"
    lines += [f"fingerprint: {event['fingerprint'] or '-'}, {attempt}"]
    lines += _probe_lines(event["identification"])
    lines += [f"step {r['step']:>3}  {pairs(r['metrics'])}" for r in event["reports"]]
    return lines + ((event["traceback"] or "").rstrip().splitlines())
