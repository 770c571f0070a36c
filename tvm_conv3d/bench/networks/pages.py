"""What a run of networks is shown as: tables on a terminal, and a Markdown page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from tvm_conv3d.bench.networks.results import KINDS, MODES, OUR_MODES, TORCH_MODES, Network, Run, closing
from tvm_conv3d.bench.report import NOTHING, markdown, means

Table = list[list[str]]

#: Characters of a bar for a ratio of 1.
BAR = 12


def ratios(networks: Iterable[Network]) -> Table:
    """The main table: torch's fastest mode beside each of ours."""
    titles = ["network", "input", "torch's fastest ms", "mode", *(f"{mode} ms" for mode in OUR_MODES), "ratio"]
    rows = [[*titles, "rel. error", "torch's"]]
    for network in networks:
        best, mine = network.fastest(TORCH_MODES), network.fastest(OUR_MODES)
        ratio = network.ratio()
        rows.append(
            [
                network.name,
                "x".join(map(str, network.shape)) or NOTHING,
                _ms(network, best),
                best or NOTHING,
                *(_ms(network, mode) for mode in OUR_MODES),
                NOTHING if ratio is None else f"{ratio:.2f}",
                _error(network, mine),
                _error(network, best),
            ]
        )
    return rows


def by_mode(networks: Iterable[Network], figure: Callable[[Network, str], str]) -> Table:
    """One figure of each network in each mode that any has."""
    timed = list(networks)
    shown = [mode for mode in MODES if any(mode in network.modes for network in timed)]
    return [["network", *shown], *([n.name, *(figure(n, mode) for mode in shown)] for n in timed)]


def first_calls_title(networks: Iterable[Network]) -> str:
    """What :func:`first_call` tells; one network that found caches spoils the rest."""
    cold = all(network.cold for network in networks)
    return f"Seconds of preparing and the first call, {'nothing cached' if cold else 'caches as they were'}"


def first_call(network: Network, mode: str) -> str:
    seconds = network.modes[mode].first_call if mode in network.modes else None
    return NOTHING if seconds is None else f"{seconds:.1f}"


def memory(network: Network, mode: str) -> str:
    found = network.modes[mode].memory if mode in network.modes else None
    return NOTHING if found is None else f"{found / 2**20:.0f}"


def kinds(networks: Iterable[Network]) -> Table:
    """Milliseconds by kind of operator; without rows where nothing was profiled."""
    rows = [["network", "mode", *KINDS, "sum"]]
    for network in networks:
        for mode, timing in network.modes.items():
            if timing.kinds:
                seconds = [timing.kinds[kind] for kind in KINDS]
                rows.append([network.name, mode, *(f"{1e3 * s:.0f}" for s in (*seconds, sum(seconds)))])
    return rows


def bars(networks: Iterable[Network]) -> list[str]:
    """A line of text for each ratio; a bar's mark is where ours is as fast."""
    found = [(network.name, ratio) for network in networks if (ratio := network.ratio()) is not None]
    width = max((len(name) for name, _ in found), default=0)
    lines = []
    for name, ratio in found:
        bar = "#" * max(1, round(BAR * ratio))
        lines.append(f"{name:{width}} {bar[:BAR]:{BAR}}|{bar[BAR:]} {ratio:.2f}")
    return lines


def notes(networks: Iterable[Network]) -> list[str]:
    """Networks and modes that were not timed, and why, a line each."""
    lines = []
    for network in networks:
        lines += [f"{network.name}: {network.note}"] if network.note else []
        lines += [f"{network.name}, {mode}: {t.note}" for mode, t in network.modes.items() if t.note]
    return lines


def head(run: Run) -> list[str]:
    """Where, when and how, a line each."""
    versions = run.setting.where()[1]
    dates = sorted({network.date for network in run.networks.values()})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else run.setting.date
    rounds = sorted({len(t.seconds) for n in run.networks.values() for t in n.modes.values() if t.seconds})
    references = sorted({network.reference for network in run.networks.values() if network.reference})
    set_up = ", ".join(f"{name}={value}" for name, value in run.environment.items()) or "nothing"
    return [
        f"{when}, {run.setting.machine}",
        versions,
        f"medians of {' or '.join(map(str, rounds)) or 'no'} interleaved rounds in one process for each network; "
        f"float32, inference mode, {set_up} set in the environment",
        f"relative errors (2-norm) against torch's eager {' or '.join(references) or 'run'}",
    ]


def page(run: Run, pictures: Sequence[str]) -> str:
    """A Markdown page of all networks of a run."""
    networks = list(run.networks.values())
    lines = ["# Whole networks of PyTorch", "", *(f"- {line}" for line in head(run)), ""]
    lines += ["Made by", "", *(f"    {command}" for command in run.commands), ""]
    lines += [*markdown(ratios(networks)), "", *means("torch's time / ours", "networks", closing(networks))]
    lines += [f"\n![{picture.rpartition('/')[2].partition('.')[0]}]({picture})" for picture in pictures]
    lines += ["", *MEANINGS]
    lines += _section("Milliseconds of every mode", by_mode(networks, _ms))
    lines += _section("Relative errors", by_mode(networks, _error))
    lines += _section(first_calls_title(networks), by_mode(networks, first_call))
    if any(timing.memory for network in networks for timing in network.modes.values()):
        lines += _section("Peak resident memory, MiB, of a process with one mode", by_mode(networks, memory))
    if len(found := kinds(networks)) > 1:
        lines += _section("Milliseconds by kind of operator, under torch's profiler", found)
    if missing := notes(networks):
        lines += ["", "## Not timed", "", *(f"- {line}" for line in missing)]
    return "\n".join(lines) + "\n"


#: What the modes are, for the page.
MEANINGS = (
    "Modes of torch: `eager`; `eager_cl`, module and input in `channels_last_3d`; `compile` and `compile_cl`, the same",
    "by `torch.compile` with constant weights (inductor, freezing). Ours: `accelerate(module)`; `compiled`,",
    '`torch.compile(module, backend="tvm_conv3d")`. `ratio` is the fastest of torch\'s modes over the faster of ours:',
    "above 1, ours is faster. Random weights, batch norms as after training, one sample.",
)


def _section(title: str, table: Table) -> list[str]:
    return ["", f"## {title}", "", *markdown(table)]


def _ms(network: Network, mode: str | None) -> str:
    seconds = None if mode is None else network.median(mode)
    return NOTHING if seconds is None else f"{1e3 * seconds:.1f}"


def _error(network: Network, mode: str | None) -> str:
    found = network.modes[mode].error if mode in network.modes else None
    return NOTHING if found is None else f"{found:.1e}"
