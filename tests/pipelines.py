"""Configurations by chance: jobs with relabel pipelines, whole jobs, whole files; with mistakes in some of them.

Everything is plain data, as it is written to a file. The parts are drawn from what is odd rather than evenly.

What 2.42 and current Prometheus are known to read differently (`tests/test_differential.py` lists it) is not drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

__all__ = ["FILES", "Document", "drawn", "files", "pipelines", "whole_jobs"]

T = TypeVar("T")
Document: TypeAlias = dict[str, Any]
"""A job, a rule, a file: what a mapping in a configuration says."""


def drawn(strategy: st.SearchStrategy[T], count: int, start: int) -> list[T]:
    """Return ``count`` examples, the same ones for the same ``start``."""
    found: list[T] = []

    @seed(start)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(example: T) -> None:
        found.append(example)

    collect()
    return found


def _either(*choices: T) -> st.SearchStrategy[T]:
    return st.sampled_from(choices)


def _one_of(*choices: st.SearchStrategy[T]) -> st.SearchStrategy[T]:
    """Draw from one of ``choices``; `hypothesis.strategies.one_of` would take each of them once only."""
    return st.integers(0, len(choices) - 1).flatmap(choices.__getitem__)


def _mostly(usual: st.SearchStrategy[T], odd: st.SearchStrategy[T], one_in: int) -> st.SearchStrategy[T]:
    return _one_of(*[usual] * (one_in - 1), odd)


def _joined(parts: st.SearchStrategy[str], most: int, between: str = "", least: int = 0) -> st.SearchStrategy[str]:
    return st.lists(parts, min_size=least, max_size=most).map(between.join)


# --- Regular expressions ---

_LITERALS = (
    *("a", "b", "ab", "1", ":", "-", ";", "_", "é", "ß", "\u03c3", "k", " ", "\n", "A", r"\.", r"\$", r"\+", r"\-"),
)
_CLASSES = (
    *(".", ".", ".", r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", "[ab]", "[^:]", "[^ab]", "[a-c]", r"[\w-]", r"[^\d.]"),
    *(
        *("[a-]", "[-b]", "[]a]", "[^]a]", "[[:alpha:]]", "[[:^digit:]]", "[^[:space:]]", "[é-ü]", "[^é]", r"[\n]"),
        *(r"[$.]",),
    ),
    *(r"\pL", r"\PL", r"\p{Greek}", r"\p{^Lu}", r"[\p{Nd}_]", r"\x41", r"\x{e9}", r"\141", r"\n", r"\t", "[😀-😎]"),
)
_EMPTY = ("^", "$", r"\b", r"\B", r"\A", r"\z", "()", "(?i)", "(?-s)", "(?s)", "(?m)", "(?U)", "(?:)")
_WRONG = (
    *(
        *("(", ")", "[", "]", "{", "}", "*", "+", "?", "|", "\\", "(?", "(?P<", "(?P<n>a)", "(?=a)", "(?!a)"),
        *("(?#a)", "(?z)"),
    ),
    *(r"\1", r"\8", r"\C", r"\Z", r"\h", r"\e", r"\pX", r"\p{Foo}", "[z-a]", "[[:foo:]]", r"[a-\d]", "(?P<é>a)"),
    *("(?P<>a)", "(?P<a-b>a)", "a{2,1}", "a{1001}", "a{1000}", "a{,2}", "a{", "a{x}", "a**", "a*+", "a++", "a{2}{2}"),
    *(
        *("(?:a{100}){11}", "(?:a{100}){10}", r"\Q.*\E", r"\Q.*", r"\E", r"\x", r"\x{110000}", r"\x{}", "(?i"),
        *("(?i:", "(?P>a)"),
    ),
    *(
        *("a)|(b", "[a", "(?:a", "a)", "(?P=n)", r"\pL+", r"\p", "(?i)K", "(?-i)a", "(?is-m:A.)", "(?i-)", "(?-)"),
        *("(?ii)a",),
    ),
    *(
        *("x{0}", "(|a)*", "(|a)+", "(a*)+", "(a*)*", "(a|b)*?", "(a*?)*", "(?:a?){3}", "((a)|b)+", "(a(b)?)+"),
        *("(a??)(a*)",),
    ),
)
_TIMES = ("", "", "", "", "*", "+", "?", "*?", "+?", "??", "{2}", "{1,2}", "{0,1}", "{1,}", "{0}", "{2,}?")
_GROUPS = (
    *("({})", "({})", "(?:{})", "(?P<name>{})", "(?P<n1>{})", "(?i:{})", "(?s:{})", "(?-s:{})", "(?U:{})", "(({}))"),
)
_USUAL = (
    *(
        *("(.*)", ".*", ".+", "(.+)", "", "a", "a|b", "ab|b1|", "[^:]+", r"([^:]+):(\d+)", r"([^:]+)(?::\d+)?"),
        *("(.+?)(:.*)?",),
    ),
    *(
        *(r"([^:]+)(?::\d+)?;(\d+)", "(.*);(.*)", "(.*)-(.*)", ".*-(.*)", "__meta_(.+)", "__meta_(.*)", "meta_.*"),
        *("__.*|a",),
    ),
    *(
        *("__(.*)__", "_?_?(.*)", "(a|b|zone)", "[a-z]", ".*_.*", "(?i)__META_(.*)", "__.*", "(__.*)|zone"),
        *("__(param|meta)_(.)",),
    ),
    *(
        *("https?", "http|https", "web-.*", r".*\.example\.com(:\d+)?", "(?P<name>[^-]+)-(?P<n1>.*)", "(.*)(.*)"),
        *("(.*?)(.*)",),
    ),
    *(
        *("((a)|(b))*", "(a+)(a*)", "(a|ab)(1|b1)?", "(?i)straße", "(?i)ΣΟΦΟΣ", "(?i)k", "(?i)[a-z]+", "^(.*)$"),
        *("^a|b$", r"\bweb\b"),
    ),
)

_part = _either(*[atom + times for atom in (*_LITERALS, *_CLASSES) for times in _TIMES], *_EMPTY * 12)
_group = st.builds(
    lambda group, first, between, second, times: group.format(first + between + second) + times,
    _either(*_GROUPS),
    _part,
    _either("", "", "|"),
    _part,
    _either(*_TIMES),
)
_composed = _joined(_part | _group, 3)
_regex = _one_of(
    _either(*_USUAL),
    _either(*_USUAL),
    _composed,
    _composed,
    _joined(_part | _group, 3, "|", 2),
    _joined(_part | _group, 3, "|", 2),
    _joined(_either(*_WRONG, *_LITERALS), 2),
)

# --- Labels ---

_NAMES = (
    *("a", "a", "b", "b", "zone", "A1", "_", "__tmp", "instance", "job", "__address__", "__address__", "__scheme__"),
    *("__meta_a", "__meta_a", "__meta_b", "__meta_b_1", "__metrics_path__", "__param_x"),
)
_READ = (*_NAMES, "missing", "__meta_missing", "a", "b", "__meta_a")
_ODD_VALUES = (
    *(
        *("", "a", "b", "ab", "aab", "a1", "b1", "a:1", "a;b", "a-b", "web-1:8080", "x.example.com:1", "http"),
        *("https", "/m"),
    ),
    *(
        *("ß", "İstanbul", "\u0131I", "ﬁn", "ΣΟΦΟΣ", "ǆǅǄ", "ŉ", "ᾳ", "K", "\u017f", "Å", "Straße", "STRASSE"),
        *("naïve", "日本", "😀", "e\u0301"),
    ),
    *(
        *("\n", "a\nb", "\na", "a\n", "\t", " ", "  a ", "\r\n", "\x00", "\x7f", "\x85", "\u2028", "\ufeff"),
        *("\ufffd", "\ufffe"),
    ),
    *(
        *("$1", "${1}", "$", "$$", "\\1", "{}", "%s"),
        '"',
        *("'", "#", "null", "~", "true", "1e3", "0x1", "-", "[a]", "{a: b}"),
    ),
    *(
        "a" * 63,
        "a" * 64,
        "a" * 65,
        "b" * 200,
        "é" * 64,
        "é" * 65,
        "a" * 61 + ":80",
        "x" * 62 + ":80",
        "-" * 64,
        "web-" * 17,
    ),
    *("__meta_a", "1a", "a b", "a.b", "é", "1d", "0s", "ab" * 32, "a:" * 33, "1" * 70, "a1" * 40 + "\n", "z" * 3000),
)
_value = st.text("abAB1:-.;_ é\n$", max_size=4) | _either(*_ODD_VALUES)
_ADDRESSES = (
    *("127.0.0.1:1", "a:1", "ab:1", "web-1:8080", "x.example.com:9100", "[::1]:1", "host", "é:1", "a" * 63 + ":9"),
)
_address = _either(*_ADDRESSES * 9, "", ":", "a b", "a:b:c", "a/b", "[", "%", "http://a:1/x", "a\nb")
_group_of_one = st.tuples(_address, st.dictionaries(_either(*_NAMES), _value, max_size=5)).map(
    lambda parts: {"targets": [parts[0]], "labels": parts[1]}
)
_targets = st.lists(_group_of_one, min_size=1, max_size=4)


def _told_apart(groups: Sequence[Document]) -> list[Document]:
    """Give every group a label of its own, lest Prometheus takes two targets for one."""
    return [{**group, "labels": {**group["labels"], "__meta_number": str(index)}} for index, group in enumerate(groups)]


# --- Rules ---

_REFERENCES = (
    *(
        *("$1", "${1}", "$2", "$0", "${0}", "$3", "$name", "${name}", "${n1}", "$n1", "$$", "$", "${", "${}", "${1"),
        *("$1x", "${1}x"),
    ),
    *(
        *("$_", "$é", "${é}", "${ 1}", "$01", "${10}", "$-", "$1_", "$$1", "$$$1", "${1}${2}", "$1$2"),
        *("$99999999999", "$٣", "$1²"),
    ),
)
_LITERAL_TEXTS = ("", "a", "x", "-", "_", ":", "é", "ß", " ", "\n", "{1}", "\\1", "😀", "1", "%s", "{}")
_template = _either("$1", "x", "", "${1}", "$1-$2", "__meta_$1") | _joined(_either(*_REFERENCES, *_LITERAL_TEXTS), 3)
_WRITTEN = (
    *("a", "b", "zone", "new", "__tmp", "__meta_c", "__address__", "instance", "__param_x", "__metrics_path__"),
    *("A1",),
)
_NAMED = (
    *("$1", "${1}", "x_$1", "${1}_x", "$name", "__meta_${2}", "_${1}${2}", "a$1", "$2", "$0", "${0}", "x${name}y"),
    *("a_$99",),
)
_WRONG_NAMES = (
    *("", "1a", "a-b", "a b", "a.b", "$", "${", "${a", "$$", "a$", "$é", "${1}-", "-$1", "a\n", "$1\n", "a:b"),
    *("{a}", "${}", "$-a"),
)
_separator = _either(*(";", "", ":", "-") * 2, "::", "é", "\n", "😀", "$1", " ", "||", ";;;;", "a", "\x00")
_source = st.lists(_either(*_READ), max_size=3)
_modulus = _either(1, 2, 3, 7, 10, 1000, 2**32, 2**63, 2**64 - 1)
_wrong_modulus = _either(0, -1, "2", "x", None, 1e3, True)


def _rule(action: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Document]:
    """Return a rule that has ``fields``, each unless it is `None`."""
    optional = {name: st.none() | field | field for name, field in fields.items() if name in ("separator", "regex")}
    return st.fixed_dictionaries({"action": st.just(action), **fields, **optional}).map(
        lambda rule: {name: value for name, value in rule.items() if value is not None}
    )


_target_label = _either(*_WRITTEN)
_replace = _rule(
    "replace",
    source_labels=_source,
    separator=_separator,
    regex=_regex,
    target_label=_target_label,
    replacement=_template,
)
# With a name that is filled in, 2.42 deletes another label than current Prometheus where the value is empty.
_replace_named = _rule(
    "replace",
    source_labels=_source,
    regex=_regex,
    target_label=_either(*_NAMED),
    replacement=_template.map(lambda template: template + "!"),
)
_keep, _drop = [_rule(action, source_labels=_source, separator=_separator, regex=_regex) for action in ("keep", "drop")]
_labeldrop, _labelkeep = [_rule(action, regex=_regex) for action in ("labeldrop", "labelkeep")]
_labelmap = _rule("labelmap", regex=_regex, replacement=_either(*_NAMED, *_NAMED, *_WRITTEN))
_hashmod = _rule("hashmod", source_labels=_source, separator=_separator, target_label=_target_label, modulus=_modulus)
_lowercase, _uppercase = [
    _rule(action, source_labels=_source, separator=_separator, target_label=_target_label)
    for action in ("lowercase", "uppercase")
]
_keepequal, _dropequal = [
    _rule(action, source_labels=_source, target_label=_either(*_READ)) for action in ("keepequal", "dropequal")
]
_good_rule = _one_of(
    *[_replace] * 7,
    *[_labelmap, _replace_named] * 3,
    *[_keep, _drop, _hashmod, _lowercase, _uppercase, _labeldrop] * 2,
    *[_labelkeep, _keepequal, _dropequal],
)

_ACTIONS = (
    *("replace", "keep", "drop", "keepequal", "dropequal", "hashmod", "labelmap", "labeldrop", "labelkeep"),
    *("lowercase", "uppercase"),
)
_MISTAKES: Mapping[str, st.SearchStrategy[Any]] = {
    "action": _either("Replace", "KEEP", "erase", "", " keep", None, *_ACTIONS),
    "target_label": _either(*_WRONG_NAMES, None, *_WRITTEN),
    "replacement": _either(*_WRONG_NAMES, None, 1, "$1"),
    "modulus": _wrong_modulus,
    "separator": _either(None, "", ";", "é", 1),
    "regex": _either("(.*)", None, "", 1, *_WRONG),
    "source_labels": _either([], None, ["a"], "a", [""], {"a": "b"}, [["a"]]),
    "Regex": st.just("a"),
    "if": st.just("a"),
}
_mistake = _one_of(*[st.tuples(st.just(name), values) for name, values in _MISTAKES.items()])


def _with(pair: tuple[Document, tuple[str, Any]]) -> Document:
    document, (name, value) = pair
    return {**document, name: value}


def _without(pair: tuple[Document, str]) -> Document:
    document, name = pair
    return {key: value for key, value in document.items() if key != name}


_bad_rule = _one_of(
    st.tuples(_good_rule, _mistake).map(_with), st.tuples(_good_rule, _either(*_MISTAKES)).map(_without)
)
_rules = st.lists(_mostly(_good_rule, _bad_rule, 25), min_size=1, max_size=4)


def pipelines(count: int, start: int) -> list[Document]:
    """Return jobs of one pipeline each, with the targets to send through it, one in each group.

    All are different. Every eight of them have the same targets, which take as long to draw as rules do.
    """
    different = {repr(rules): rules for rules in drawn(_rules, count * 5 // 4, start)}
    rules = list(different.values())[:count]
    groups = [_told_apart(targets) for targets in drawn(_targets, count // 8 + 1, start)]
    return [
        {"relabel_configs": some, "static_configs": groups[index % len(groups)]} for index, some in enumerate(rules)
    ]


# --- Whole jobs ---

FILES: Mapping[str, object] = {
    "a.json": [{"targets": ["j:1", "j:2"], "labels": {"k": "v", "empty": ""}}, {"targets": ["j:3"]}],
    "b.json": [{"targets": ["b:1"], "labels": {"__scheme__": "https", "__param_y": "é", "job": "own"}}],
    "c.yml": [{"targets": ["c:1"], "labels": {"n": 10, "b": True, "none": None, "f": 1.5}}, {"labels": {"a": "b"}}],
    "none.json": [],
}
"""Target files, by their names in the folder ``targets`` beside a configuration."""

_DURATIONS = ("1h", "90s", "1h30m", "2d", "1w", "1y", "100m", "3600s", "1d12h", "86400000ms")
_TIMEOUTS = ("10s", "1s", "500ms", "1m", "59m", "30s")
_WRONG_DURATIONS = (
    *("", "0", "0s", "5", "1", "-1s", "1.5h", "1h 30m", "30m1h", "1x", "s", None, 30, "1H", " 1s", "400y"),
    *("99999999999s",),
)
_own_labels = st.dictionaries(
    _either("a", "zone", "job", "instance", "__scheme__", "__metrics_path__", "__param_y", "__meta_x", "empty"),
    _value,
    max_size=3,
)
_times = _one_of(
    st.just({}),
    st.fixed_dictionaries(
        {"__scrape_interval__": _mostly(_either(*_DURATIONS), _either(*map(str, _WRONG_DURATIONS)), 3)}
    ),
    st.fixed_dictionaries(
        {"__scrape_timeout__": _mostly(_either(*_TIMEOUTS), _either(*map(str, _WRONG_DURATIONS)), 3)}
    ),
)
_static = st.lists(
    st.tuples(st.lists(_either(*_ADDRESSES), max_size=3, unique=True), _own_labels, _times).map(
        lambda parts: {"targets": parts[0], "labels": parts[1] | parts[2]}
    ),
    max_size=3,
).map(_told_apart)
_patterns = _either("*.json", "a.json", "b.json", "c.yml", "*.yml", "missing-*.yaml", "./*.json", "none.json").map(
    "targets/{}".format
)
_file_sd = st.lists(
    st.fixed_dictionaries(
        {"files": st.lists(_patterns, min_size=1, max_size=3)}, optional={"refresh_interval": _either("1m", "5m")}
    ),
    max_size=2,
)
_params = st.dictionaries(
    _either("x", "match", "a_b", "module"), st.lists(_either("", "a", "é", "{a}", "1"), max_size=2), max_size=3
)
_job_fields: Mapping[str, st.SearchStrategy[Any]] = {
    "scheme": _either("http", "https"),
    "metrics_path": _either("/metrics", "/federate", "/é", "x", "/a?b=c"),
    "params": _params,
    "scrape_interval": _either(*_DURATIONS),
    "scrape_timeout": _either(*_TIMEOUTS),
    "honor_labels": st.booleans(),
    "honor_timestamps": st.booleans(),
    "sample_limit": st.integers(0, 9),
    "body_size_limit": _either("1MB", "10KiB", "0", "1.5GB", ""),
    "follow_redirects": st.booleans(),
    "static_configs": _static,
    "file_sd_configs": _file_sd,
}
_job = st.fixed_dictionaries({}, optional=dict(_job_fields))


def whole_jobs() -> st.SearchStrategy[Document]:
    """Draw a job that says more than its rules."""
    some_rules: st.SearchStrategy[list[Document]] = st.just([]) | st.lists(_good_rule, max_size=2)
    return st.tuples(_job, some_rules).map(lambda parts: {**parts[0], "relabel_configs": parts[1]})


# --- Whole files ---

_static_mistakes: st.SearchStrategy[Any] = _either(
    *(
        *([], None, {}, "a", [None], [{}], [{"targets": None}], [{"targets": "a:1"}], [{"targets": ["http://a:1"]}]),
        *([["a:1"]],),
    ),
    *([{"targets": ["a/b"]}], [{"targets": [1]}], [{"targets": [None]}], [{"targets": [["a"]]}], [{"target": ["a:1"]}]),
    *([{"labels": {"a-b": "c"}}], [{"labels": {"a": None}}], [{"labels": {"a": 1}}], [{"labels": {"": "c"}}]),
    *([{"labels": {"a": ["b"]}}], [{"labels": ["a"]}], [{"labels": "a"}], [{"labels": {"1a": ""}}], [{"labels": None}]),
)
_file_mistakes: st.SearchStrategy[Any] = _either(
    *([], None, {}, [None], [{}], [{"files": []}], [{"files": None}], [{"files": "a.json"}], [{"files": ["a.txt"]}]),
    *([{"files": ["*/a.json"]}], [{"files": ["a*b*.json"]}], [{"files": ["[a].json"]}], [{"files": [".json"]}]),
    *(
        [{"files": ["a.yaml"], "refresh_interval": "5"}],
        [{"files": ["a.json"], "refresh": "5m"}],
        [{"files": ["A.JSON"]}],
    ),
    *(
        [{"files": ["a.json"], "refresh_interval": None}],
        [{"files": [""]}],
    ),
)
_job_mistakes: Mapping[str, st.SearchStrategy[Any]] = {
    "job_name": _either("", None, 1, "é", "a b", ["a"], {}),
    "scheme": _either("", None, 1, "ftp", "HTTP", ["http"]),
    "metrics_path": _either("", None, 1, ["/"]),
    "params": _either(
        {}, None, [], "a", {"a": "b"}, {"a": None}, {"a": [None]}, {"a": [1]}, {"": ["a"]}, {"a-b": ["c"]}
    ),
    "scrape_interval": _either(*_WRONG_DURATIONS),
    "scrape_timeout": _either(*_WRONG_DURATIONS, "1y", "2h"),
    "honor_labels": _either(None, "yes", "true", "no", "y", 1, "", "on", "True", "tRUE", "1", "maybe", []),
    "sample_limit": _either(None, -1, "5", "", "a", 2**63, 1e2),
    "body_size_limit": _either(None, "1", 1, "1XB", "-1MB", "1 MB", "MB", "1mb", "1MiB"),
    "static_configs": _static_mistakes,
    "file_sd_configs": _file_mistakes,
    "relabel_configs": _either(None, {}, [None], [[]], "a", [{}], ["a"], [{"action": "keep"}], [{"regex": "a"}]),
    "metric_relabel_configs": st.lists(_mostly(_good_rule, _bad_rule, 3), max_size=2),
    "unknown": st.just(1),
    "targets": st.just(["a:1"]),
    "static_config": st.just([]),
    "dns_sd_config": st.just([]),
    "scrape_intervals": st.just("1m"),
}
_bad_job = st.tuples(_job, _one_of(*[st.tuples(st.just(name), values) for name, values in _job_mistakes.items()])).map(
    _with
)
_global = st.fixed_dictionaries(
    {},
    optional={
        "scrape_interval": _mostly(_either(*_DURATIONS), _either(*_WRONG_DURATIONS), 6),
        "scrape_timeout": _mostly(_either(*_TIMEOUTS), _either(*_WRONG_DURATIONS, "2h"), 6),
        "evaluation_interval": _mostly(_either("1m", "15s"), _either(*_WRONG_DURATIONS), 6),
        "external_labels": _mostly(
            _either({}, {"a": "b"}, {"a": 1}, {"a": "$x"}, {"a": "${b}"}, None),
            _either({"a-b": "c"}, {"": "a"}, [], "a", {"a": []}),
            6,
        ),
        "query_log_file": _either("", "q.log", None),
    },
)
_alertmanager = st.fixed_dictionaries(
    {},
    optional={
        "scheme": _mostly(_either("http", "https"), _either("", None, "ftp", 1), 6),
        "path_prefix": _either("", "/", "/a", "a/", "/a/../b", None, "é"),
        "timeout": _mostly(_either("10s", "1m"), _either(*_WRONG_DURATIONS), 5),
        "api_version": _mostly(st.just("v2"), _either("v3", "", None, "V2", 2), 6),
        "static_configs": _mostly(_static, _static_mistakes, 5),
        "file_sd_configs": _mostly(_file_sd, _file_mistakes, 5),
        "relabel_configs": st.lists(_mostly(_good_rule, _bad_rule, 8), max_size=2),
    },
)
_alerting: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {},
    optional={
        "alertmanagers": _mostly(st.lists(_alertmanager, max_size=2), _either(None, {}, [None], "a", [[]]), 8),
        "alert_relabel_configs": st.lists(_mostly(_good_rule, _bad_rule, 8), max_size=2),
    },
)


def _numbered(jobs: Sequence[Document]) -> list[Document]:
    return [{"job_name": f"job-{index}", **job} for index, job in enumerate(jobs)]


_jobs = st.lists(_mostly(_job, _bad_job, 3), max_size=3).map(_numbered)
_odd_jobs: st.SearchStrategy[Any] = _either(
    *(
        *(None, {}, "a", [None], [[]], ["a"], [{}], [{"job_name": "a"}, {"job_name": "a"}]),
        *([{"job_name": "a"}, {"job_name": "b"}],),
    ),
    [{"scrape_interval": "1m"}],
)
_file: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {},
    optional={
        "global": _mostly(_global, _either(None, {}, [], "a"), 10),
        "scrape_configs": _mostly(_jobs, _odd_jobs, 8),
        "alerting": _mostly(_alerting, _either(None, [], "a", {"alertmanager": []}), 10),
        "rule_files": _mostly(_either([], ["a.yml"], ["*.yml"]), _either(None, "a", ["*/a.yml"], [None], {}), 5),
    },
)


def files() -> st.SearchStrategy[Document]:
    """Draw a whole configuration."""
    mistake: st.SearchStrategy[tuple[str, Any]] = _either("scrape_config", "globals", "Global", "remote", "x").map(
        lambda name: (name, {})
    )
    return _mostly(_file, st.tuples(_file, mistake).map(_with), 15)
