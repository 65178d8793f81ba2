"""The ``trio-sd`` command: ``check``, ``explain``, ``config-diff``, ``run`` and ``demo``.

Results go to stdout, everything else to stderr. Exit status: 0 all is well; 1 the configuration or the command line
can't be used, or a demo failed; 2 ``check`` or ``explain`` did not hear of every provider in time, or found nothing.
"""

from __future__ import annotations

import gc
import io
import logging
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import click
import trio

from . import __version__
from .config import Config, Duration
from .errors import ConfigError, TrioSDError
from .manager import Manager, open_manager
from .outputs.check import check_document, check_rows, checked_targets
from .outputs.config_diff import config_differences, diff_document, diff_rows, diff_summary
from .outputs.explain import TargetFilter, explain_document, explain_text, explained_targets
from .outputs.health import health_lines, reloads_line, target_files_line
from .outputs.jsonl import JsonLines
from .outputs.logfmt import LogfmtFormatter
from .outputs.text import plain_table
from .regexes import check_regex
from .reload import Reloader, load
from .set_configs import SetConfigs
from .snapshots import Snapshot

if TYPE_CHECKING:
    from .outputs.file_sd import TargetFiles
    from .web import WebOptions

__all__ = ["main"]

logger = logging.getLogger(__name__)
health_logger = logging.getLogger("trio_sd.health")

MANAGERS = ("scrape", "notify")

EXIT_UNUSABLE = 1
EXIT_INCOMPLETE = 2

_STDOUT = 1  # the descriptor; sys.stdout is None where it is closed

_CONFIG_ARGUMENT = click.argument("config", type=click.Path(dir_okay=False))


def _duration(context: click.Context, parameter: click.Parameter, text: str) -> Duration:
    try:
        return Duration.of(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _optional_duration(context: click.Context, parameter: click.Parameter, text: str | None) -> Duration | None:
    return None if text is None else _duration(context, parameter, text)


def _labels(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    labels = [text.partition("=") for text in texts]
    for name, sign, _ in labels:
        if not (name and sign):
            raise click.BadParameter(f"found {name!r}, expected NAME=VALUE")
    return tuple([(name, value) for name, _, value in labels])


_TIMEOUT_OPTION = click.option(
    "--timeout",
    metavar="DURATION",
    callback=_duration,
    default="30s",
    show_default=True,
    help="How long to wait for slow providers.",
)
_FORMAT_OPTION = click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "json"]),
    help="Default: a table on a terminal, JSON elsewhere.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="trio-sd")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="What is logged on stderr; debug adds tracebacks.",
)
def cli(log_level: str) -> None:
    """Service discovery in the dialect of Prometheus, on structured concurrency.

    \b
    Examples:
      trio-sd demo                            see it work, on nothing but itself
      trio-sd check prometheus.yml            find every target once, then end
      trio-sd check prometheus.yml node web   the same for two jobs
      trio-sd explain prometheus.yml node     what each relabeling rule does to each target
      trio-sd config-diff old.yml new.yml     what a reload would start, stop and keep
      trio-sd run prometheus.yml              watch targets come and go
      pkill -HUP -x trio-sd                   reload the configuration
      pkill -USR1 -x trio-sd                  log how everything fares
    """
    handler = logging.StreamHandler()
    handler.setFormatter(LogfmtFormatter())
    logging.basicConfig(level=log_level.upper(), handlers=[handler], force=True)
    health_logger.setLevel(logging.INFO)  # what was asked for by a signal is not for the level to suppress
    logging.captureWarnings(capture=True)


@cli.command()
@_CONFIG_ARGUMENT
@click.argument("jobs", nargs=-1)
@_TIMEOUT_OPTION
@_FORMAT_OPTION
def check(config: str, jobs: tuple[str, ...], timeout: Duration, format_: str | None) -> int:
    """Find the targets of CONFIG once and print them, of every job or of the named JOBS.

    Ends as soon as every provider has reported its first full set. The JSON is what "promtool check
    service-discovery" prints; of several jobs, an object with one such list under each job's name. Alertmanagers
    are found under the names config-0, config-1 and so on.

    \b
    Exit status:
      0  every provider has reported, and there are targets
      1  the configuration or the command line can't be used, or the output can't be written
      2  some provider had not reported at the timeout, or no target was discovered at all; stderr says so

    \b
    Examples:
      trio-sd check prometheus.yml
      trio-sd check prometheus.yml node --format json | jq '.[].labels.instance'
      trio-sd check prometheus.yml --timeout 5s
    """
    _require_stdout()
    _allow_open_files()
    return trio.run(_check, config, jobs, timeout.seconds, format_ or _table_or("json"))


async def _check(path: str, jobs: tuple[str, ...], patience: float, format_: str) -> int:
    found = await _discover(path, jobs, patience)
    jobs_checked = checked_targets(found.configs, found.snapshot)
    if format_ == "json":
        click.echo(check_document(jobs_checked))
    else:
        click.echo(_table(("JOB", "TARGET", "STATE", "LABELS"), check_rows(jobs_checked)))
    return 0 if found.complete else EXIT_INCOMPLETE


@cli.command()
@_CONFIG_ARGUMENT
@click.argument("job")
@click.option(
    "--target",
    "addresses",
    metavar="ADDRESS",
    multiple=True,
    help="Only targets with this address or instance, before or after relabeling. May be given again.",
)
@click.option(
    "--label",
    "labels",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_labels,
    help="Only targets with this label, before or after relabeling. May be given again: then with all of them.",
)
@_TIMEOUT_OPTION
@_FORMAT_OPTION
def explain(
    config: str,
    job: str,
    addresses: tuple[str, ...],
    labels: tuple[tuple[str, str], ...],
    timeout: Duration,
    format_: str | None,
) -> int:
    """Find the targets of JOB once, and show what each relabeling rule did to each of them.

    For every target: the labels that it was discovered with, each rule with its place in the file, what the rule
    looked at and what it changed, and what became of the target. A "duplicate" has the final labels of another one.
    JOB may be an Alertmanager section as well: config-0, config-1 and so on, where no job has that name.

    \b
    Exit status:
      0  every provider has reported, and there are such targets
      1  the configuration or the command line can't be used, or the output can't be written
      2  some provider had not reported at the timeout, or there is no such target; stderr says so

    \b
    Examples:
      trio-sd explain prometheus.yml node
      trio-sd explain prometheus.yml node --target web-1:9100
      trio-sd explain prometheus.yml node --label env=test --format json | jq '.[].steps[] | select(.kept | not)'
    """
    _require_stdout()
    chosen = TargetFilter(addresses, labels)
    _allow_open_files()
    return trio.run(_explain, config, job, chosen, timeout.seconds, format_ or _table_or("json"))


async def _explain(path: str, job: str, chosen: TargetFilter, patience: float, format_: str) -> int:
    found = await _discover(path, (job,), patience)
    section = found.config.jobs.get(job) or found.config.alertmanagers[job]
    targets = explained_targets(found.snapshot[job], section.labeler(), chosen)
    first = next(targets, None)
    shown = [] if first is None else chain([first], targets)
    if found.complete and first is None:
        logger.error("no target of %s matches", job)
    if format_ == "json":
        for part in explain_document(shown, section.rule_positions):
            click.echo(part, nl=part.endswith("]"))
    else:
        for block in explain_text(shown, section.rule_positions, partial(_table, fold=True)):
            click.echo(block, nl=False)
    return 0 if found.complete and first is not None else EXIT_INCOMPLETE


@cli.command("config-diff")
@click.argument("old", type=click.Path(dir_okay=False))
@click.argument("new", type=click.Path(dir_okay=False))
@_FORMAT_OPTION
def config_diff(old: str, new: str, format_: str | None) -> None:
    """Show which sets and providers a reload from the configuration OLD to NEW would start, stop or keep.

    Nothing is discovered. Have both files in one directory, because relative paths are taken from there. A provider
    "keeps" if its configuration is equal: it is restarted, and its targets stay shown meanwhile. One that "joins" or
    "leaves" a set goes on in other sets. "labels" says that targets get other labels, because the rules or other
    settings of the section differ.

    \b
    Exit status:
      0  the differences were shown, if there are any
      1  a configuration or the command line can't be used, or the output can't be written

    \b
    Examples:
      trio-sd config-diff prometheus.yml prometheus.yml.new
      git show HEAD:prometheus.yml > old.yml && trio-sd config-diff old.yml prometheus.yml
      trio-sd config-diff old.yml new.yml --format json | jq '.[] | select(.state == "removed").set'
    """
    _require_stdout()
    trio.run(_config_diff, old, new, format_ or _table_or("json"))


async def _config_diff(old: str, new: str, format_: str) -> None:
    differences = config_differences(await load(old), await load(new))
    if format_ == "json":
        click.echo(diff_document(differences))
    else:
        click.echo(_table(("MANAGER", "SET", "IS", "PROVIDER", "WHICH"), diff_rows(differences), fold=True))
        click.echo(diff_summary(differences))


@dataclass(frozen=True)
class _Discovered:
    """What was found once.

    Attributes:
      config: the whole configuration.
      configs: the sets that were asked for.
      snapshot: what was found of them.
      complete: whether every provider has reported, and there are targets.
    """

    config: Config
    configs: SetConfigs
    snapshot: Snapshot
    complete: bool


async def _discover(path: str, names: Sequence[str], patience: float) -> _Discovered:
    """Discover the targets of the named sets once, of all jobs if there are no names; log what can't be found out."""
    config = await load(path)
    for note in config.notes:
        logger.warning("%s: %s", path, note)
    known = {**config.scrape, **{name: configs for name, configs in config.notify.items() if name not in config.scrape}}
    unknown = [name for name in names if name not in known]
    if unknown:
        listed = ", ".join(known) or "none"
        raise ConfigError(f"no such job: {', '.join(unknown)}; the configuration has: {listed}")
    labeling = {**config.notify.labeling, **config.scrape.labeling}
    configs = SetConfigs({name: known[name] for name in (names or config.scrape)}, labeling)
    async with open_manager(configs) as manager:
        with trio.move_on_after(patience):
            await manager.wait_synced()
        silent = set(manager.unsynced())
        statistics = manager.statistics()
        snapshot = manager.snapshot()
    for provider in statistics.providers:
        if provider.name in silent:  # what the others have to tell, they have logged themselves
            told = [*provider.details.errors, *provider.details.notes]
            trouble = told or [provider.last_error or "nothing heard of it"]
            logger.error(
                "provider %s of %s had not reported after %g s: %s",
                provider.name,
                ", ".join(provider.sets),
                patience,
                "; ".join(trouble),
            )
    nothing = not any(map(snapshot.target_count, snapshot))
    if not configs:
        logger.error("there is no job to discover targets for")
    elif nothing and not silent:
        logger.error("no target was discovered for %s", ", ".join(configs))
    return _Discovered(config, configs, snapshot, not (silent or nothing))


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, fold: bool = False) -> str:
    """Return a table as wide as the terminal; elsewhere it is as wide as it needs to be.

    What has no room on a terminal is cut, or with ``fold`` goes on in the next line.
    """
    if not sys.stdout.isatty():
        return plain_table(headings, rows)
    from .outputs.table import render, rows_table  # drawing costs 60 ms of imports

    width = shutil.get_terminal_size().columns
    text = render(rows_table(headings, rows, fold=fold), width=width, terminal=True)
    return "\n".join([line.rstrip() for line in text.splitlines()])


@cli.command()
@_CONFIG_ARGUMENT
@click.option(
    "--output",
    type=click.Choice(["table", "jsonl", "none"]),
    help="Default: a live table on a terminal, JSON lines elsewhere.",
)
@click.option("--relabel", is_flag=True, help="Show targets with their final labels, without those that rules drop.")
@click.option("--watch-config", is_flag=True, help="Reload when the configuration's files change, too.")
@click.option(
    "--state-file",
    type=click.Path(dir_okay=False, readable=False),
    help="Keep what is shown over a restart in this file (and alertmanagers in FILE.notify).",
)
@click.option(
    "--state-max-age",
    metavar="DURATION",
    callback=_optional_duration,
    help="Restore nothing that was last known to be right longer ago.",
)
@click.option(
    "--removal-delay",
    metavar="DURATION",
    callback=_duration,
    default="0s",
    show_default=True,
    help="Show a target for that long after it has gone, in case that it comes back.",
)
@click.option(
    "--file-sd-dir",
    metavar="DIR",
    type=click.Path(file_okay=False, exists=True),
    help="Write target files for Prometheus: DIR/JOB.json, and DIR/notify/config-0.json for alertmanagers.",
)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Serve targets to Prometheus (http_sd), metrics, health and events. :PORT is on the loopback interface.",
)
@click.option(
    "--web-host", "web_hosts", multiple=True, metavar="NAME", help="A name that clients may call the server by."
)
@click.option(
    "--web-config",
    type=click.Path(dir_okay=False),
    help="Encryption and users, in a file as Prometheus' --web.config.file. Changes are taken up.",
)
@click.option(
    "--web-cors-origin",
    metavar="REGEX",
    help="Let pages of an origin that this matches as a whole read the answers: 'https://(a|b)[.]example'.",
)
@click.option("--enable-reload", is_flag=True, help="Reload at POST /-/reload.")
def run(
    config: str,
    output: str | None,
    relabel: bool,
    watch_config: bool,
    state_file: str | None,
    state_max_age: Duration | None,
    removal_delay: Duration,
    file_sd_dir: str | None,
    listen: str | None,
    web_hosts: tuple[str, ...],
    web_config: str | None,
    web_cors_origin: str | None,
    enable_reload: bool,
) -> None:
    """Run the discovery of CONFIG and show targets come and go, until SIGTERM or SIGINT.

    SIGHUP reloads the configuration; one that can't be used is refused, and the old one goes on. SIGUSR1 logs how
    every provider and subscriber fares. "jsonl" prints one update a line:
    {"revision": 7, "manager": "scrape", "sets": {JOB: {"updated": [...], "removed": [...]}}}.
    The manager is "scrape" for scrape_configs, "notify" for alertmanagers. Lines have "stale": {JOB: UNIX TIME} for
    jobs that show something from the state file which was not found out since.

    \b
    Exit status:
      0  ended by SIGTERM or SIGINT, or nobody reads the output any more
      1  the configuration or the command line can't be used, or the output can't be written

    \b
    Examples:
      trio-sd run prometheus.yml
      trio-sd run prometheus.yml --output jsonl | jq -c '.sets | keys'
      trio-sd run prometheus.yml --output jsonl --relabel
      trio-sd run prometheus.yml --output none --watch-config
      trio-sd run prometheus.yml --state-file /var/lib/trio-sd/state --state-max-age 1d --removal-delay 30s
      trio-sd run prometheus.yml --output none --file-sd-dir /var/lib/prometheus/targets
      trio-sd run prometheus.yml --output none --listen :9099
    """
    _ignore_what_asks_for_something()
    # What is found stays for long, and goes without cycles. The collector would go through it again and again.
    gc.set_threshold(50_000, 20, 20)
    _allow_open_files()
    output = output or _table_or("jsonl")
    if output != "none":
        _require_stdout("; use --output none")
    opening = _Opening(state_file, None if state_max_age is None else state_max_age.seconds, removal_delay.seconds)
    opening.check(config)
    trio.run(
        partial(
            _run,
            config,
            output=output,
            relabel=relabel,
            watch=watch_config,
            opening=opening,
            file_sd_dir=file_sd_dir,
            web=_web_options(listen, web_hosts, web_config, web_cors_origin, enable_reload),
        )
    )


def _web_options(
    listen: str | None,
    hosts: tuple[str, ...],
    config_file: str | None,
    cors_origin: str | None,
    enable_reload: bool,
) -> WebOptions | None:
    """Return how to serve, or ``None`` if nobody asked for it.

    Raises:
      click.UsageError: it can't be done so.
    """
    if listen is None:
        for option, given in (
            ("--web-host", hosts),
            ("--web-config", config_file),
            ("--web-cors-origin", cors_origin),
            ("--enable-reload", enable_reload),
        ):
            if given:
                raise click.UsageError(f"{option} is of no use without --listen")
        return None
    try:
        from .web import ListenAddress, WebOptions  # what not everybody needs, and has
    except ModuleNotFoundError as error:
        raise click.UsageError(f"--listen needs the extra serve, which has {error.name}: trio-sd[serve]") from None
    try:
        address = ListenAddress.parse(listen)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--listen") from None
    try:
        check_regex(cors_origin or "")
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--web-cors-origin") from None
    return WebOptions(address, hosts, config_file, enable_reload, __version__, cors_origin)


@dataclass(frozen=True)
class _Opening:
    """How managers are opened.

    Attributes:
      state_file: where "scrape" keeps its state; "notify" has a file of its own beside it.
      state_max_age: seconds.
      removal_delay: seconds.
    """

    state_file: str | None = None
    state_max_age: float | None = None
    removal_delay: float = 0.0

    def _state_path(self, name: str) -> str | None:
        return self.state_file and (self.state_file if name == "scrape" else f"{self.state_file}.{name}")

    def check(self, config: str) -> None:
        """Refuse what can't be meant.

        Raises:
          click.UsageError: what is told.
        """
        if self.state_file is None:
            if self.state_max_age is not None:
                raise click.UsageError("--state-max-age is of no use without --state-file")
            return
        folder = os.path.dirname(os.path.abspath(self.state_file))
        if not os.path.isdir(folder):
            raise click.UsageError(f"there is no folder {folder} for the state file")
        paths = [f"{self._state_path(name)}{suffix}" for name in MANAGERS for suffix in ("", ".new")]
        if os.path.realpath(config) in map(os.path.realpath, paths):
            # It would be set aside as a state file that can't be used, or written over.
            raise click.UsageError("the state file and the configuration are the same file")

    def open(self, name: str) -> AbstractAsyncContextManager[Manager]:
        """Open the manager of that name."""
        state_path = self._state_path(name)
        return open_manager(
            name=name, removal_delay=self.removal_delay, state_path=state_path, state_max_age=self.state_max_age
        )


async def _run(
    path: str,
    *,
    output: str,
    relabel: bool,
    watch: bool,
    opening: _Opening,
    file_sd_dir: str | None,
    web: WebOptions | None,
) -> None:
    files = () if file_sd_dir is None else _target_files(file_sd_dir)

    async def body(managers: Sequence[Manager], reloader: Reloader, nursery: trio.Nursery) -> None:
        for manager, its_files in zip(managers, files, strict=False):  # none, perhaps
            nursery.start_soon(partial(its_files.run, manager, relabel=relabel))
        if web is not None:
            from .web import run_web

            await nursery.start(run_web, web, *managers, reloader)
        if output == "table":
            from .outputs.screen import Screen  # drawing costs 60 ms of imports

            await Screen(path, managers, reloader.statistics, relabel=relabel).run()
        elif output == "jsonl":
            lines = JsonLines(_STDOUT)
            for manager in managers:
                nursery.start_soon(_write_lines, manager, lines, relabel)
        await trio.sleep_forever()

    await _serve(path, body, watch=watch, opening=opening, files=files)


def _target_files(directory: str) -> tuple[TargetFiles, ...]:
    """Return what writes the target files of each manager."""
    from .outputs.file_sd import TargetFiles  # what not everybody needs

    return tuple([TargetFiles(os.path.join(directory, "" if name == "scrape" else name)) for name in MANAGERS])


async def _write_lines(manager: Manager, lines: JsonLines, relabel: bool) -> None:
    async with manager.subscribe(relabel=relabel, name="jsonl") as updates:
        first = True
        stale: Mapping[str, float] = {}
        async for update in updates:
            before, stale = stale, update.snapshot.stale
            if first or update.changes or stale != before:
                await lines.write(manager.name, update)
            first = False


@cli.command()
def demo() -> None:
    """Show the engine at work on a temporary directory, for about ten seconds.

    Writes a small configuration and a few target files, changes them while it runs, reloads by SIGHUP, and shows the
    table of targets change. Needs nothing and leaves nothing.
    """
    _ignore_what_asks_for_something()
    trio.run(_demo)


async def _demo() -> None:
    from .demo import demo_files, play
    from .outputs.screen import Screen  # drawing costs 60 ms of imports

    over = False

    async def body(managers: Sequence[Manager], reloader: Reloader, nursery: trio.Nursery) -> None:
        nonlocal over
        screen = Screen(path, managers, reloader.statistics)
        nursery.start_soon(screen.run)
        await play(path, managers[0], reloader, screen.caption)
        over = True

    with demo_files() as path:
        await _serve(path, body)
    if over:  # and not ended by a signal
        click.echo("The demo is over: every change was seen.")


async def _serve(
    path: str,
    body: Callable[[Sequence[Manager], Reloader, trio.Nursery], Awaitable[None]],
    *,
    watch: bool = False,
    opening: _Opening = _Opening(),
    files: Sequence[TargetFiles] = (),
) -> None:
    """Run both managers of the configuration at ``path``, and ``body`` beside them until it returns or a signal comes.

    Signals are caught from before the first file is read: a SIGHUP that comes early asks for a reload, and does not
    kill the process. The first load is a reload like any other, but that a refusal ends the process.
    """
    with trio.open_signal_receiver(signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1) as signals:
        async with trio.open_nursery() as outer:
            handler = _SignalHandler(outer.cancel_scope, files)
            outer.start_soon(handler.run, signals)
            async with (
                opening.open(MANAGERS[0]) as scrape,
                opening.open(MANAGERS[1]) as notify,
                trio.open_nursery() as nursery,
            ):
                reloader = Reloader(path, scrape=scrape, notify=notify)
                handler.attach(reloader, (scrape, notify), nursery.cancel_scope)
                await reloader.reload()
                nursery.start_soon(reloader.run)
                if watch:
                    nursery.start_soon(reloader.watch)
                await body((scrape, notify), reloader, nursery)
                nursery.cancel_scope.cancel()
            outer.cancel_scope.cancel()


def _require_stdout(instead: str = "") -> None:
    """Refuse to write to a stdout that is closed: its descriptor may be somebody else's by now."""
    if sys.stdout is None:
        raise click.UsageError(f"stdout is closed, so there is nowhere to write to{instead}")


def _allow_open_files() -> None:
    """Raise the limit on open files to what the system allows, as Go does: each endpoint that is asked takes one."""
    try:
        import resource  # there is none on Windows
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # on macOS the hard limit is more than there may be
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _ignore_what_asks_for_something() -> None:
    """Let SIGHUP and SIGUSR1 do nothing where they are not caught yet, or no more: by default they end the process."""
    for number in signal.SIGHUP, signal.SIGUSR1:
        signal.signal(number, signal.SIG_IGN)


class _SignalHandler:
    """Does what signals ask for, from before there is anything to reload or to tell of."""

    def __init__(self, scope: trio.CancelScope, files: Sequence[TargetFiles]) -> None:
        self._scope = scope
        self._files = files
        self._reloader: Reloader | None = None
        self._managers: Sequence[Manager] = ()

    def attach(self, reloader: Reloader, managers: Sequence[Manager], scope: trio.CancelScope) -> None:
        """From now on, reload by ``reloader``, tell of ``managers``, and end by cancelling ``scope``."""
        self._reloader, self._managers, self._scope = reloader, managers, scope

    async def run(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if number == signal.SIGHUP:
                if self._reloader is not None:  # otherwise the first load is still to come
                    self._reloader.request()
            elif number == signal.SIGUSR1:
                if self._reloader is not None:
                    health_logger.info("%s", reloads_line(self._reloader.statistics()))
                for manager in self._managers:
                    for line in health_lines(manager.statistics(), trio.current_time()):
                        health_logger.info("%s", line)
                for one in self._files:
                    health_logger.info("%s", target_files_line(one.statistics(), trio.current_time()))
            else:
                logger.info("%s: ending", signal.Signals(number).name)
                self._scope.cancel()


def _table_or(otherwise: str) -> str:
    return "table" if sys.stdout and sys.stdout.isatty() else otherwise


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and exit the process with its status."""
    for stream in sys.stdout, sys.stderr:
        if isinstance(stream, io.TextIOWrapper):  # it may be closed, or a test's
            stream.reconfigure(errors="backslashreplace")
    try:
        status = cli.main(args=arguments, prog_name="trio-sd", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        status = EXIT_UNUSABLE
    except click.Abort:
        status = EXIT_UNUSABLE
    except (TrioSDError, OSError, BaseExceptionGroup) as error:
        status = _report(error)
    sys.exit(status)


def _report(error: BaseException) -> int:
    """Tell what ended the command, if it is something that a user can mend; return the exit status."""
    leaves = list(_leaves(error))
    if all(isinstance(leaf, BrokenPipeError) for leaf in leaves):
        os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)  # the interpreter's last flush fails no more
        return 0  # whoever read stdout has seen enough
    if not all(isinstance(leaf, TrioSDError | OSError) for leaf in leaves):
        raise error
    for leaf in leaves:
        text = f"can't write the output: {leaf.strerror}" if isinstance(leaf, OSError) else str(leaf)
        click.echo(f"trio-sd: {text}", err=True)
    return EXIT_UNUSABLE


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error
