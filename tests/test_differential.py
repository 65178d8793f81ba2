"""Very many pipelines and configurations by chance, and what the real Prometheus makes of the same files.

A seed says what is drawn; it is printed, and told with every difference. By default it is always the same one, as in
all tests here. `TRIO_SD_SEED` is another one, `TRIO_SD_PIPELINES` how many pipelines to draw (see `.ci/campaign`).

Debian has Prometheus 2.42, and we follow the current one. Where these two differ is in `DIFFERENCES`, with the reason
and an example that is shown to both; whatever is not there has to be equal.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pytest
import trio

import trio_sd
from trio_sd.errors import ConfigError
from trio_sd.relabel import Relabeler
from trio_sd.target_labels import Outcome, TargetLabeler

from .pipelines import FILES, Document, drawn, files, pipelines, whole_jobs
from .processes import run_command
from .real_prometheus import NOWHERE, Fate, needs_prometheus, refusals, running_prometheus, write_document
from .test_promtool import entries

pytestmark = needs_prometheus

SEED = int(os.environ.get("TRIO_SD_SEED", "1"))
PIPELINES = int(os.environ.get("TRIO_SD_PIPELINES", "2000"))
BATCH = 5_000
"""How many pipelines one server gets."""
TOLD = 10
"""How many differences are told at once."""

LEGACY = {"metric_name_validation_scheme": "legacy", "metric_name_escaping_scheme": "underscores"}
"""By which label names are valid that 2.42 takes for valid; it does not know these keys."""
SHOW = {"action": "labelmap", "regex": "__(.*)", "replacement": "shown_$1"}
"""The last rule of every job: the server shows no labels that begin with two underscores."""
GLOBALS: Sequence[Document] = (
    {"scrape_interval": "1d"},
    {"scrape_interval": "2h", "scrape_timeout": "90s"},
    {"scrape_interval": "1y", "scrape_timeout": "7s", "external_labels": {"a": "b"}},
)

Answer: TypeAlias = "Mapping[str, str | None] | Literal['file refused', 'target refused', 'dropped', 'accepted']"
"""What becomes of one target: some of its labels, `None` for one that is missing. Or of one file."""


@dataclass(frozen=True)
class Case:
    """A job with one target, and what becomes of it.

    Attributes:
      rules: the job's relabel_configs.
      labels: of the target `a:1`.
      job: more about the job.
      answer: what current Prometheus makes of it, and trio-sd.
      old: what 2.42 makes of it, if that is something else.
      why: the reason for that, or what else there is to know.
    """

    rules: Sequence[Document]
    answer: Answer
    labels: Mapping[str, str] = field(default_factory=dict)
    job: Mapping[str, Any] = field(default_factory=dict)
    old: Answer | None = None
    why: str = ""

    def document(self) -> Document:
        target = {"targets": ["a:1"], "labels": dict(self.labels)}
        return {"relabel_configs": [*self.rules], "static_configs": [target], **self.job}


def replace(source: str, regex: str, target: str, replacement: str) -> Document:
    return {"source_labels": [source], "regex": regex, "target_label": target, "replacement": replacement}


_NEW_LETTERS = frozenset(
    map(
        chr,
        [
            *(0x2C2F, 0x2C5F, 0xA7C0, 0xA7C1, 0xA7D0, 0xA7D1, *range(0xA7D6, 0xA7DA), *range(0x10570, 0x105BD)),
            # Unicode 16, which newer Pythons know
            *(0x19B, 0x264, 0x1C89, 0x1C8A, *range(0xA7CB, 0xA7CE), *range(0xA7DA, 0xA7DD), *range(0x10D50, 0x10D86)),
        ],
    )
)
LETTERS = "".join(
    char for char in map(chr, range(0x20000)) if char.lower() + char.upper() != char * 2 and char not in _NEW_LETTERS
)
"""All letters with another case that 2.42 knows."""
CASE_RULES = [
    {"action": action, "source_labels": ["a"], "target_label": action} for action in ("lowercase", "uppercase")
]

# Found by chance, or by looking for it.
CASES = {
    "several groups have one name, and the first that took part counts": Case(
        [replace("a", "(?P<n>x)|(?P<n>y)|(?P<n>)z", "b", "<$n>"), replace("c", "(?P<n>x*)(?P<n>y)", "d", "<$n>")],
        labels={"a": "y", "c": "y"},
        answer={"b": "<y>", "d": "<>"},
    ),
    "every letter's other case": Case(CASE_RULES, labels={"a": LETTERS}, answer={}),
    "a parenthesis closes the anchors": Case(
        [{"action": "labelmap", "regex": "a)|(b", "replacement": "_$1"}, replace("c", "x)|(y", "d", "<$1>")],
        labels={"axxb": "1", "c": "xz"},
        answer={"_xx_b": "1", "d": "<>"},
    ),
    "labels that get one name": Case(
        [{"action": "labelmap", "regex": "__meta_.(.*)", "replacement": "new$1"}],
        labels={"__meta_b": "2", "__meta_c": "3", "__meta_a": "1", "__meta_a1": "4"},
        answer={"new": "3", "new1": "4"},
        why="the current one takes them in the order in which it has them, which is a random one; by name is as good",
    ),
    "long values at the limits of the quick ways": Case(
        [replace("a", "(a*)(.)", "c", "$2"), replace("b", "(a+)(.+)?", "d", "$2")],
        labels={"a": "a" * 63 + "é", "b": "a" * 64 + "\n"},
        answer={"c": "é", "d": "\n"},
    ),
}

DIFFERENCES = {
    "letters of Unicode 14": Case(
        CASE_RULES,
        labels={"a": "\ua7c0\u2c2f"},
        answer={"lowercase": "\ua7c1\u2c5f", "uppercase": "\ua7c0\u2c2f"},
        old={"lowercase": "\ua7c0\u2c2f", "uppercase": "\ua7c0\u2c2f"},
        why="2.42 is built with Go 1.19, which knows Unicode 13",
    ),
    "a dot matches a newline": Case(
        [replace("a", "x.y", "b", "found")],
        labels={"a": "x\ny"},
        answer={"b": "found"},
        old={"b": None},
        why="since 3.0 expressions are compiled with (?s)",
    ),
    "an empty value deletes the label that a template names": Case(
        [replace("a", "(.*)", "$1", "")],
        labels={"a": "zone", "zone": "old"},
        answer={"zone": None},
        old={"zone": "old"},
        why="2.42 deletes a label that is named as the template is, with the dollar",
    ),
    "a template makes a name of UTF-8": Case(
        [replace("a", "(.*)", "$1", "x")],
        labels={"a": "b-é"},
        job={"metric_name_validation_scheme": "utf8", "metric_name_escaping_scheme": "allow-utf-8"},
        answer={"b-é": "x"},
        old={"b-é": None},
        why="names of UTF-8 are valid since 3.0",
    ),
    "a target's own parameter is kept": Case(
        [],
        labels={"__param_x": "own"},
        job={"params": {"x": ["configured"], "y": ["configured"]}},
        answer={"shown_param_x": "own", "shown_param_y": "configured"},
        old={"shown_param_x": "configured", "shown_param_y": "configured"},
        why="in 2.42 the configuration wins, unlike with every other label",
    ),
    "a group's name in angle brackets": Case(
        [replace("a", "(?<n>x).*", "b", "$n")],
        labels={"a": "xy"},
        answer={"b": "x"},
        old="file refused",
        why="Go 1.22 reads what was (?P<n>x) only",
    ),
    "a target label of UTF-8": Case(
        [replace("a", "(.*)", "é", "$1")],
        labels={"a": "x"},
        job={"metric_name_validation_scheme": "utf8", "metric_name_escaping_scheme": "allow-utf-8"},
        answer={"é": "x"},
        old="file refused",
        why="names of UTF-8 are valid since 3.0",
    ),
    "a source label of UTF-8": Case(
        [{"source_labels": ["é", "a"], "target_label": "b"}],
        labels={"a": "x"},
        answer={"b": ";x"},
        old="file refused",
        why="names of UTF-8 are valid since 3.0; of source labels under every scheme",
    ),
    "a name with a dollar where no group is filled in": Case(
        [{"action": "lowercase", "source_labels": ["a"], "target_label": "$1"}],
        answer="file refused",
        old={"$1": None},
        why="2.42 checks the names of these actions as those of replace, and makes a label with a dollar in its name",
    ),
}


@dataclass(frozen=True)
class FileCase:
    """A file that one side refuses, and why the other does not."""

    document: Document
    accepted: bool
    accepted_by_2_42: bool
    why: str


def _job(**fields: object) -> Document:
    return {"scrape_configs": [{"job_name": "a", **fields}]}


FILE_DIFFERENCES = {
    "a fraction for a modulus": FileCase(
        _job(relabel_configs=[{"action": "hashmod", "target_label": "a", "modulus": 1.5}]),
        accepted=False,
        accepted_by_2_42=True,
        why="Go's YAML cuts the fraction off without a word, in current Prometheus too; here it is a mistake",
    ),
    "a modulus that is too large": FileCase(
        _job(relabel_configs=[{"action": "hashmod", "target_label": "a", "modulus": 2**64}]),
        accepted=False,
        accepted_by_2_42=True,
        why="Go's YAML takes another number without a word, in current Prometheus too; here it is a mistake",
    ),
    "a fraction for a limit": FileCase(
        _job(sample_limit=1.5), accepted=False, accepted_by_2_42=True, why="as for a modulus"
    ),
    "a limit that is too large": FileCase(
        _job(sample_limit=2**64), accepted=False, accepted_by_2_42=True, why="as for a modulus"
    ),
    "a null for a source label": FileCase(
        _job(relabel_configs=[{"action": "drop", "source_labels": [None]}]),
        accepted=False,
        accepted_by_2_42=True,
        why="Go's YAML does not ask a name what it thinks of null; Prometheus refuses the empty name, as we do",
    ),
    "no time between two looks at target files": FileCase(
        _job(file_sd_configs=[{"files": ["a.json"], "refresh_interval": "0s"}]),
        accepted=False,
        accepted_by_2_42=True,
        why="Prometheus, the current one too, reads the file and then breaks down",
    ),
    "a section that is new": FileCase(
        {"otlp": {}, "scrape_config_files": []},
        accepted=True,
        accepted_by_2_42=False,
        why="such keys came later",
    ),
    "api v1 of Alertmanager": FileCase(
        {"alerting": {"alertmanagers": [{"api_version": "v1"}]}},
        accepted=False,
        accepted_by_2_42=True,
        why="3.0 no longer speaks it",
    ),
}


# --- Both sides ---


class Comparison:
    """Jobs that both sides are to read, and what each makes of them.

    Attributes:
      jobs: as they are read.
      refused_here: why trio-sd refuses some of them, by name.
      refused_there: why the real Prometheus does.
    """

    def __init__(self, directory: Path, seed: int) -> None:
        self.jobs: dict[str, Document] = {}
        self.refused_here: dict[str, str] = {}
        self.refused_there: dict[str, str] = {}
        self._directory = directory
        self._defaults = GLOBALS[seed % len(GLOBALS)]
        self._told: dict[str, Document] = {}  # the real Prometheus
        self._loaded: dict[str, trio_sd.ScrapeJob] = {}
        self._without_targets: set[str] = set()  # known when ours() was asked
        (directory / "targets").mkdir()
        for name, content in FILES.items():
            write_document(directory / "targets" / name, content)

    def add(self, jobs: Mapping[str, Document], *, same_dot: bool = True) -> None:
        """Take jobs, each in a file of its own at first: a mistake in one is none in another.

        Args:
          jobs: by their names.
          same_dot: whether 2.42 is told that a dot matches a newline.
        """
        asked = {}
        for name, job in jobs.items():
            self.jobs[name] = shown({**LEGACY, "job_name": name, **job})
            told = {key: value for key, value in self.jobs[name].items() if key not in LEGACY}
            self._told[name] = dotted(told) if same_dot else told
            config = self._load([self.jobs[name]])
            if isinstance(config, str):
                self.refused_here[name] = config
            else:
                self._loaded[name] = config.jobs[name]
            # With targets promtool would also check these.
            self._write(f"{len(self.jobs)}.yml", [{**self._told[name], "static_configs": []}])
            asked[f"{len(self.jobs)}.yml"] = name
        refused = refusals(self._directory, [*asked])
        self.refused_there.update({asked[file]: reason for file, reason in refused.items()})

    def theirs(self) -> tuple[dict[str, Fate], int]:
        """Return what the real server makes of the jobs that it accepts, and how many targets it drops."""
        jobs = [job for name, job in self._told.items() if name not in self.refused_there]
        config = self._write("prometheus.yml", jobs)
        with running_prometheus(self._directory, config) as server:
            server.wait([job["job_name"] for job in jobs if job["job_name"] not in self._without_targets])
            return server.fates()

    def ours(self) -> tuple[dict[str, Fate], int]:
        """Return the same of trio-sd."""
        from_files = [self.jobs[name] for name in self._loaded if self.jobs[name].get("file_sd_configs")]
        config = self._load(from_files)
        assert not isinstance(config, str), config
        found = trio.run(discover, config)
        fates, dropped = {}, 0
        for name, job in self._loaded.items():
            labeler = TargetLabeler(job, Relabeler(job.relabel_configs, job.name_scheme))
            targets = found[name] if name in found else static_targets(self.jobs[name])
            if not targets:
                self._without_targets.add(name)
            outcomes = [labeler.target_labels(labeler.discovered_labels(*target)) for target in targets]
            fates[name] = fate(outcomes)
            dropped += sum(outcome.dropped for outcome in outcomes)
        return fates, dropped

    def _write(self, name: str, jobs: Sequence[Document]) -> Path:
        file = self._directory / name
        write_document(file, {"global": self._defaults, "scrape_configs": jobs})
        return file

    def _load(self, jobs: Sequence[Document]) -> trio_sd.Config | str:
        return load(self._write("ours.yml", jobs))


def dotted(job: Document) -> Document:
    """Return ``job`` with expressions that say themselves that a dot matches a newline."""
    return {**job, "relabel_configs": [_dotted(rule) for rule in job["relabel_configs"]]}


def _dotted(rule: Document) -> Document:
    action = str(rule.get("action", "replace")).lower()
    regex = rule.get("regex", None if action in ("keepequal", "dropequal") else "(.*)")
    return {**rule, "regex": f"(?s){regex}"} if isinstance(regex, str) else rule


def shown(job: Document) -> Document:
    """Return ``job`` with the rule that shows hidden labels, and with no way to anywhere."""
    return {**job, "proxy_url": NOWHERE, "relabel_configs": [*job["relabel_configs"], SHOW]}


def load(file: Path) -> trio_sd.Config | str:
    """Return the configuration, or why it is refused."""
    try:
        return trio_sd.load_config(file)
    except ConfigError as error:
        return str(error)


Target: TypeAlias = "tuple[Mapping[str, str], Mapping[str, str]]"
"""The labels of a target, and those of its group."""


def static_targets(job: Document) -> list[Target]:
    """Return the targets that ``job`` itself names."""
    return [
        ({"__address__": address}, group["labels"])
        for group in job.get("static_configs", ())
        for address in group["targets"]
    ]


async def discover(config: trio_sd.Config) -> dict[str, list[Target]]:
    """Return the targets of each job that trio-sd finds."""
    async with trio_sd.open_manager(config.scrape) as manager:
        await manager.wait_synced()
        return {
            name: [(target, group.labels) for group in groups for target in group.targets]
            for name, groups in manager.snapshot().items()
        }


def fate(outcomes: Sequence[Outcome]) -> Fate:
    """Return what became of the targets of one job, as the server would tell it."""
    found = Fate()
    for outcome in outcomes:
        if outcome.labels is not None:
            found.labels.add(frozenset(pair for pair in outcome.labels.items() if not pair[0].startswith("__")))
        elif outcome.error is not None:
            found.refused.append(outcome.error)
    return found


def kinds(reasons: Sequence[str]) -> list[str]:
    """Return which of the known reasons these are; the words differ."""
    known = ("no address", "not a valid hostname", "parsing scrape interval", "parsing scrape timeout", "cannot be 0")
    return sorted([next((kind for kind in known if kind in reason), reason[:40]) for reason in reasons])


def difference(ours: Fate, theirs: Fate) -> str:
    """Return what is different, or an empty text."""
    lines = [f"  Prometheus: {dict(sorted(labels))}" for labels in theirs.labels - ours.labels]
    lines += [f"  trio-sd:    {dict(sorted(labels))}" for labels in ours.labels - theirs.labels]
    if kinds(ours.refused) != kinds(theirs.refused):
        lines += [f"  Prometheus refuses: {theirs.refused}", f"  trio-sd refuses:    {ours.refused}"]
    return "\n".join(lines)


def spelled(document: object) -> str:
    text = json.dumps(document, ensure_ascii=False)
    return text if len(text) < 3000 else text[:3000] + "…"


def refusal_differences(
    documents: Mapping[str, Document], here: Mapping[str, str], there: Mapping[str, str]
) -> Iterator[str]:
    """Yield what only one side refuses."""
    for name, document in documents.items():
        if (name in here) is not (name in there):
            told = f"  Prometheus: {there.get(name, 'fine')}\n  trio-sd:    {here.get(name, 'fine')}"
            yield f"{spelled(document)}\n{told}"


def assert_none(differences: Sequence[str], seed: int) -> None:
    """Fail with what is different, if anything is."""
    told = "\n\n".join(differences[:TOLD])
    assert not differences, f"{len(differences)} differences with TRIO_SD_SEED={seed}; the first of them:\n{told}"


# --- Targets ---


def named(prefix: str, documents: Sequence[Document]) -> dict[str, Document]:
    return {f"{prefix}-{index}": document for index, document in enumerate(documents)}


def answer(name: str, refused: Mapping[str, str], fates: Mapping[str, Fate]) -> Answer:
    """Return what became of the one target of a job."""
    if name in refused:
        return "file refused"
    found = fates.get(name, Fate())
    if found.refused:
        return "target refused"
    return dict(*found.labels) if found.labels else "dropped"


def fits(expected: Answer, found: Answer) -> bool:
    if isinstance(expected, str) or isinstance(found, str):
        return expected == found
    return all(found.get(name) == value for name, value in expected.items())


def named_differences(compared: Comparison, ours: Mapping[str, Fate], theirs: Mapping[str, Fate]) -> Iterator[str]:
    """Yield the named cases of which something else becomes than is told of them."""
    for title, case in {**CASES, **DIFFERENCES}.items():
        here = answer(title, compared.refused_here, ours)
        there = answer(title, compared.refused_there, theirs)
        as_told = fits(case.answer, here) and (here == there if case.old is None else fits(case.old, there))
        if not as_told:
            yield f"{title}\n  Prometheus: {there}\n  trio-sd:    {here}"


def test_targets_become_what_prometheus_makes_of_them(tmp_path: Path) -> None:
    for seed, count in enumerate([min(BATCH, PIPELINES - done) for done in range(0, PIPELINES, BATCH)], SEED):
        directory = tmp_path / str(seed)
        directory.mkdir()
        compared = Comparison(directory, seed)
        by_chance = {
            **named("pipeline", pipelines(count, seed)),
            **named("job", drawn(whole_jobs(), count // 20, seed)),
        }
        compared.add(by_chance)
        compared.add({title: case.document() for title, case in CASES.items()})
        compared.add({title: case.document() for title, case in DIFFERENCES.items()}, same_dot=False)
        ours, dropped = compared.ours()
        theirs, dropped_there = compared.theirs()
        differences = [
            *named_differences(compared, ours, theirs),
            *refusal_differences(by_chance, compared.refused_here, compared.refused_there),
        ]
        for name, here in ours.items():
            if name in by_chance and (told := difference(here, theirs.get(name, Fate()))):
                differences.append(f"{spelled(compared.jobs[name])}\n{told}")
        if dropped != dropped_there:
            differences.append(f"Prometheus dropped {dropped_there} targets, trio-sd {dropped}")
        scraped, refused = (sum(len(getattr(fate, what)) for fate in ours.values()) for what in ("labels", "refused"))
        print(
            f"seed {seed}: {len(compared.jobs)} pipelines, {len(compared.refused_here)} of them refused; targets:"
            f" {scraped} scraped, {dropped} dropped, {refused} refused; {len(differences)} differences"
        )
        assert_none(differences, seed)
        assert len(by_chance) >= count


def promtool_prints(config: Path, jobs: Sequence[str]) -> list[str]:
    """Return what promtool prints of each of these jobs."""
    command = ["promtool", "--enable-feature=no-default-scrape-port", "check", "service-discovery", "--timeout=300ms"]
    running = [subprocess.Popen([*command, str(config), job], stdout=subprocess.PIPE, text=True) for job in jobs]
    return [process.communicate()[0] for process in running]


def test_check_prints_what_promtool_prints_of_pipelines(tmp_path: Path) -> None:
    jobs = [{"job_name": f"job-{index}", **job} for index, job in enumerate(pipelines(40, 0))]
    write_document(tmp_path / "ours.yml", {"global": LEGACY, "scrape_configs": jobs})
    write_document(tmp_path / "theirs.yml", {"scrape_configs": [dotted(job) for job in jobs]})
    printed = json.loads(run_command("check", tmp_path / "ours.yml").stdout)
    names = sorted(printed, key=lambda name: len({json.dumps(entry["labels"]) for entry in printed[name]}))[-4:]
    for name, theirs in zip(names, promtool_prints(tmp_path / "theirs.yml", names), strict=True):
        assert entries(json.dumps(printed[name])) == entries(theirs), name


@pytest.mark.parametrize(("address", "old"), [("a:80", "a"), ("[::1]:80", "::1"), ("a:443", "a:443"), ("a", "a")])
def test_the_port_of_an_address_stays_unlike_in_2_42(address: str, old: str, tmp_path: Path) -> None:
    # 2.42 has a feature that adds no port, but takes away the one that it would have added.
    config = tmp_path / "prometheus.yml"
    write_document(config, {"scrape_configs": [{"job_name": "job", "static_configs": [{"targets": [address]}]}]})
    loaded = trio_sd.load_config(config)
    labeler = TargetLabeler(loaded.jobs["job"], Relabeler([]))
    labels = labeler.target_labels(labeler.discovered_labels({"__address__": address}, {})).labels
    assert labels is not None
    assert labels["__address__"] == labels["instance"] == address
    [[entry]] = map(json.loads, promtool_prints(config, ["job"]))
    assert (entry["labels"]["__address__"], entry["labels"]["instance"]) == (old, address)


# --- Files ---


def legacy(file: Document) -> Document:
    """Return ``file`` with the label names of 2.42."""
    section = file.get("global")
    return {**file, "global": LEGACY | (section or {})} if section is None or isinstance(section, dict) else file


def refused_files(directory: Path, documents: Mapping[str, Document]) -> tuple[dict[str, str], dict[str, str]]:
    """Return what trio-sd refuses, and what promtool does, by name and with the reason."""
    here = {}
    for name, document in documents.items():
        write_document(directory / name, document)
        write_document(directory / "ours.yml", legacy(document))
        loaded = load(directory / "ours.yml")
        if isinstance(loaded, str):
            here[name] = loaded
    return here, refusals(directory, [*documents])


def test_files_by_chance_are_refused_where_promtool_refuses_them(tmp_path: Path) -> None:
    count = max(PIPELINES // 4, 1)
    documents = {f"{name}.yml": file for name, file in named("file", drawn(files(), count, SEED)).items()}
    here, there = refused_files(tmp_path, documents)
    differences = list(refusal_differences(documents, here, there))
    print(f"seed {SEED}: {len(documents)} files, {len(here)} of them refused; {len(differences)} differences")
    assert_none(differences, SEED)


@pytest.mark.parametrize("name", FILE_DIFFERENCES)
def test_a_file_that_is_read_differently_is_read_as_is_told(name: str, tmp_path: Path) -> None:
    expected = FILE_DIFFERENCES[name]
    here, there = refused_files(tmp_path, {"file.yml": expected.document})
    assert (not here, not there) == (expected.accepted, expected.accepted_by_2_42), (here, there)
