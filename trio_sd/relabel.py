"""Relabeling: rules that rewrite, keep or drop label sets, as Prometheus applies them.

A :class:`RelabelConfig` says what a rule does, and a :class:`Relabeler` does it. A relabeler turns each of its rules
into one function when it is made, so that no target has to pay for looking at the rule again.

:mod:`trio_sd.regexes` matches the regular expressions. Values of labels hardly ever repeat, so nothing remembers its
answers for them. Names of labels do repeat, so the rules about names remember their answers for a limited number of
names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, TypeAlias, TypeVar

from .errors import FieldError, TrioSDError
from .messages import is_utf8, quote
from .regexes import Regex, check_regex, readable
from .targets import Labels

__all__ = [
    "ACTIONS",
    "LabelChange",
    "NameScheme",
    "RelabelConfig",
    "RelabelError",
    "Relabeler",
    "Step",
    "Trace",
    "explain",
    "is_valid_label_name",
    "relabel",
]

T = TypeVar("T")

NameScheme: TypeAlias = Literal["legacy", "utf8"]
"""Which label names are valid: ASCII letters, digits and ``_`` only, or any text that is UTF-8."""

ACTIONS: Final = (
    "replace",
    "keep",
    "drop",
    "keepequal",
    "dropequal",
    "hashmod",
    "labelmap",
    "labeldrop",
    "labelkeep",
    "lowercase",
    "uppercase",
)
"""What a rule can do."""

_DEFAULT_SEPARATOR: Final = ";"
_DEFAULT_REGEX: Final = "(.*)"
_DEFAULT_REPLACEMENT: Final = "$1"
_NULL_IS_EMPTY: Final = MappingProxyType({"null": "empty"})
"""For the decoder: a null in the text is no default here, but the empty string."""

_WRITING: Final = frozenset({"replace", "hashmod", "lowercase", "uppercase"})
_COMPARING: Final = frozenset({"keepequal", "dropequal"})
_CASE: Final = frozenset({"lowercase", "uppercase"})
_BY_NAME: Final = frozenset({"labeldrop", "labelkeep"})
_BY_VALUE: Final = frozenset({"replace", "keep", "drop"})
"""Actions whose regular expression is matched against the value, not against names of labels."""

_LEGACY_NAME: Final = re.compile("[a-zA-Z_][a-zA-Z0-9_]*")
_LEGACY_TEMPLATE: Final = re.compile(r"(?:[a-zA-Z_]|\$\{\w+\}|\$\w)(?:\w|\$\{\w+\}|\$\w)*+", re.ASCII)
"""A name with ``$1`` or ``${1}`` in it."""

_REMEMBERED: Final = 1024  # names of labels a rule
_LONGEST: Final = 1024 * 1024  # characters of a value or a name
_MOST_LABELS: Final = 10_000
_UINT64: Final = 2**64


def is_valid_label_name(name: str, scheme: NameScheme) -> bool:
    """Tell whether ``name`` is a valid name of a label under ``scheme``."""
    if scheme == "legacy":
        return _LEGACY_NAME.fullmatch(name) is not None
    return name != "" and is_utf8(name)


class RelabelError(TrioSDError, ValueError):
    """Rules make more of a target than it may have: rules that double something would soon fill the memory."""


@dataclass(frozen=True, slots=True)
class RelabelConfig:
    """One rule, in the words of the dialect.

    Attributes:
      source_labels: names of the labels whose values are joined; a label that is missing counts as empty.
      separator: what stands between the joined values.
      regex: what the joined value (for labelmap, labeldrop and labelkeep: a label's name) must match as a whole.
      modulus: for hashmod, what the hash is taken modulo of.
      target_label: the label that is written or compared; for replace, groups of ``regex`` may be named in it.
      replacement: the value to write; groups of ``regex`` may be named in it. For labelmap, the new name.
      action: one of :data:`ACTIONS`, in lower or upper case.
    """

    source_labels: tuple[str, ...] = ()
    separator: str = field(default=_DEFAULT_SEPARATOR, metadata=_NULL_IS_EMPTY)
    regex: str = field(default=_DEFAULT_REGEX, metadata=_NULL_IS_EMPTY)
    modulus: int = 0
    target_label: str = ""
    replacement: str = field(default=_DEFAULT_REPLACEMENT, metadata=_NULL_IS_EMPTY)
    action: str = field(default="replace", metadata=_NULL_IS_EMPTY)

    def __post_init__(self) -> None:
        object.__setattr__(self, "action", self.action.lower())

    def validate(self, scheme: NameScheme = "utf8", *, given: Collection[str] = ()) -> None:
        """Check what the types of the fields can't say. What "legacy" accepts, "utf8" accepts as well.

        Args:
          scheme: which names of labels are valid.
          given: fields that the configuration sets. A value that differs from its default is known to be set; this
            is for the two places where Prometheus refuses even the default when it is written out: ``regex`` of
            keepequal and dropequal, ``source_labels`` of labeldrop and labelkeep.

        Raises:
          FieldError: the rule can't be used.
        """
        for index, name in enumerate(self.source_labels):
            if not is_valid_label_name(name, "utf8"):  # whatever the scheme: such a label may well be there
                raise FieldError(("source_labels", index), f"{quote(name)} is not a valid label name")
        try:
            check_regex(self.regex)
        except ValueError as error:
            raise FieldError("regex", str(error)) from None
        if not 0 <= self.modulus < _UINT64:
            raise FieldError("modulus", f"found {self.modulus}, expected a whole number from 0 to 2^64 - 1")
        if not self.action:
            raise FieldError("action", "relabel action cannot be empty")
        if self.action not in ACTIONS:
            message = f"unknown relabel action {quote(self.action)}; expected one of: {', '.join(ACTIONS)}"
            raise FieldError("action", message)
        self._check_names(scheme)
        self._check_unused(given)

    def _check_names(self, scheme: NameScheme) -> None:
        action, target = self.action, self.target_label
        if action == "hashmod" and not self.modulus:
            message = "relabel configuration for hashmod requires non-zero modulus"
            raise FieldError("modulus", message)
        if action in _WRITING or action in _COMPARING:
            if not target:
                message = f"relabel configuration for {action} action requires 'target_label' value"
                raise FieldError("target_label", message)
            named = is_valid_label_name if action != "replace" else _is_valid_name_template
            if not named(target, scheme):
                raise FieldError("target_label", f"{quote(target)} is invalid 'target_label' for {action} action")
        if action == "labelmap" and not _is_valid_map_template(self.replacement, scheme):
            message = f"{quote(self.replacement)} is invalid 'replacement' for labelmap action"
            raise FieldError("replacement", message)

    def _check_unused(self, given: Collection[str]) -> None:
        action = self.action
        unused: tuple[str, ...]
        if (action in _CASE or action in _COMPARING) and self.replacement != _DEFAULT_REPLACEMENT:
            raise FieldError("replacement", f"'replacement' can not be set for {action} action")
        if action in _COMPARING:
            used, unused = "'source_labels' and `target_label`", ("regex", "modulus", "separator")
            even_if_default = "regex"
        elif action in _BY_NAME:
            used, unused = "'regex'", ("source_labels", "target_label", "modulus", "separator", "replacement")
            even_if_default = "source_labels"
        else:
            return
        for name in unused:
            if getattr(self, name) != getattr(_DEFAULT, name) or (name == even_if_default and name in given):
                raise FieldError(name, f"{action} action requires only {used}, and no other fields")


_DEFAULT: Final = RelabelConfig()


def _is_valid_name_template(template: str, scheme: NameScheme) -> bool:
    if "$" in template:
        return _is_valid_map_template(template, scheme)
    return is_valid_label_name(template, scheme)


def _is_valid_map_template(template: str, scheme: NameScheme) -> bool:
    # Under "utf8" a name may contain $ and braces anyway.
    if scheme == "legacy":
        return _LEGACY_TEMPLATE.fullmatch(template) is not None
    return is_valid_label_name(template, scheme)


# Rules

_Values: TypeAlias = "dict[str, str]"  # the labels at work; a label without a value is not there


@dataclass(frozen=True, slots=True)
class _Rule:
    """A rule made ready.

    Attributes:
      apply: changes labels in place; tells whether they are kept.
      value: reads what the rule looks at; ``None`` for rules that look at names.
      matches: tells whether the regular expression matches that; ``None`` where none is asked.
    """

    config: RelabelConfig
    apply: Callable[[_Values], bool]
    value: Callable[[_Values], str] | None
    matches: Callable[[str], bool] | None


def _rule(config: RelabelConfig, scheme: NameScheme) -> _Rule:
    regex = Regex(config.regex)
    action = config.action
    if action in _BY_NAME or action == "labelmap":
        by_name = _labelmap(config, regex) if action == "labelmap" else _labeldrop(config, regex)
        return _Rule(config, by_name, None, None)
    value = _reader(config)
    if action in _BY_VALUE:
        by_value = _replace(config, regex, value, scheme) if action == "replace" else _keep(config, regex, value)
        return _Rule(config, by_value, value, regex.matches)
    if action in _COMPARING:
        return _Rule(config, _keepequal(config, value), value, None)
    return _Rule(config, _computed(config, value), value, None)


def _reader(config: RelabelConfig) -> Callable[[_Values], str]:
    """Return what reads and joins the values of the source labels."""
    names, separator = config.source_labels, config.separator
    if not names:
        return lambda labels: ""
    if len(names) == 1:
        only = names[0]
        return lambda labels: labels.get(only, "")
    if len(names) == 2:
        first, second = names
        return lambda labels: _bounded(f"{labels.get(first, '')}{separator}{labels.get(second, '')}")
    return lambda labels: _bounded(separator.join([labels.get(name, "") for name in names]))


def _bounded(text: str) -> str:
    if len(text) > _LONGEST:
        raise RelabelError(f"the rules make a text of {len(text)} characters, expected {_LONGEST} at the most")
    return text


def _expander(make: Callable[[str], Callable[[str], str | None]], template: str) -> Callable[[str], str | None]:
    """Return what fills ``template``, by what ``make`` returns; the result is bounded where it may be the double."""
    fill = make(template)
    if template.count("$") < 2:
        return fill

    def fill_bounded(text: str) -> str | None:
        result = fill(text)
        return None if result is None else _bounded(result)

    return fill_bounded


def _keep(config: RelabelConfig, regex: Regex, value: Callable[[_Values], str]) -> Callable[[_Values], bool]:
    matches = regex.matches
    if config.action == "keep":
        return lambda labels: matches(value(labels))
    return lambda labels: not matches(value(labels))


def _keepequal(config: RelabelConfig, value: Callable[[_Values], str]) -> Callable[[_Values], bool]:
    target = config.target_label
    if config.action == "keepequal":
        return lambda labels: labels.get(target, "") == value(labels)
    return lambda labels: labels.get(target, "") != value(labels)


def _replace(
    config: RelabelConfig, regex: Regex, value: Callable[[_Values], str], scheme: NameScheme
) -> Callable[[_Values], bool]:
    target = config.target_label
    expand = _expander(regex.expander, config.replacement)
    if "$" not in target:

        def replace(labels: _Values) -> bool:
            result = expand(value(labels))
            if result:
                labels[target] = result
            elif result is not None:
                labels.pop(target, None)
            return True

        return replace
    expand_name = _expander(regex.expander, target)

    def replace_named(labels: _Values) -> bool:
        text = value(labels)
        name = expand_name(text)
        if name is not None and is_valid_label_name(name, scheme):
            _assign(labels, name, expand(text) or "")
        return True

    return replace_named


def _computed(config: RelabelConfig, value: Callable[[_Values], str]) -> Callable[[_Values], bool]:
    target, modulus = config.target_label, config.modulus
    compute: Callable[[str], str] = {
        "lowercase": _lower,
        "uppercase": _upper,
        "hashmod": lambda text: _hash_modulo(text, modulus),
    }[config.action]

    def write(labels: _Values) -> bool:
        _assign(labels, target, compute(value(labels)))
        return True

    return write


def _assign(labels: _Values, name: str, value: str) -> None:
    if value:
        labels[name] = value
    else:
        labels.pop(name, None)


def _hash_modulo(text: str, modulus: int) -> str:
    digest = hashlib.md5(text.encode(errors="surrogateescape"), usedforsecurity=False).digest()
    return str(int.from_bytes(digest[8:], "big") % modulus)


def _lower(text: str) -> str:
    return text.lower() if text.isascii() else "".join(map(_lower_character, readable(text)))


def _upper(text: str) -> str:
    return text.upper() if text.isascii() else "".join(map(_upper_character, readable(text)))


# Go maps character by character: no final sigma, and one character never becomes two.


def _lower_character(char: str) -> str:
    lower = char.lower()
    return lower if len(lower) == 1 else "i"  # İ is the one letter whose lower case is longer


def _upper_character(char: str) -> str:
    upper = char.upper()
    if len(upper) == 1:
        return upper
    title = char.title()  # of Greek letters with an iota subscript the simple upper case is this one
    return title if len(title) == 1 else char


def _labelmap(config: RelabelConfig, regex: Regex) -> Callable[[_Values], bool]:
    renamed = _Remembered(_expander(regex.renamer, config.replacement))

    def labelmap(labels: _Values) -> bool:
        found = [(name, new, value) for name, value in labels.items() if (new := renamed[name]) is not None]
        if len(found) > 1:
            found.sort()  # of labels that get the same name, the last one by name wins
        for _, new, value in found:
            labels[new] = value
        if len(labels) > _MOST_LABELS:
            raise RelabelError(f"the rules make {len(labels)} labels, expected {_MOST_LABELS} at the most")
        return True

    return labelmap


def _labeldrop(config: RelabelConfig, regex: Regex) -> Callable[[_Values], bool]:
    matches = _Remembered(regex.matches)
    unwanted = config.action == "labeldrop"

    def labeldrop(labels: _Values) -> bool:
        for name in [name for name in labels if matches[name] is unwanted]:
            del labels[name]
        return True

    return labeldrop


class _Remembered(dict[str, T]):
    """The results of a function by the names of labels, as many as have a place.

    A dictionary that fills itself is asked without a Python frame for a name that it knows.
    """

    def __init__(self, function: Callable[[str], T]) -> None:
        self._function = function

    def __missing__(self, name: str) -> T:
        if len(self) >= _REMEMBERED:
            self.clear()
        result = self[name] = self._function(name)
        return result


# Relabeling


@dataclass(frozen=True, slots=True)
class LabelChange:
    """What a rule did to one label; ``None`` where there is no such label.

    Attributes:
      name: the label's name.
      before: its value before.
      after: its value after.
    """

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Step:
    """What one rule did.

    Attributes:
      index: the number of the rule, counted from 0.
      config: the rule.
      value: what the rule looked at: the joined values of its source labels. ``None`` for a rule about names.
      matched: whether ``regex`` matched that value; ``None`` for a rule that does not ask.
      changes: the labels that changed, ordered by name.
      kept: whether the target was kept.
    """

    index: int
    config: RelabelConfig
    value: str | None
    matched: bool | None
    changes: tuple[LabelChange, ...]
    kept: bool


@dataclass(frozen=True, slots=True)
class Trace:
    """What the rules did to a label set, one after the other.

    Attributes:
      steps: one for each rule that was reached.
      labels: the result, or ``None`` if the target was dropped or can't be used.
      error: why it can't be used, if the rule after these steps made too much of it.
    """

    steps: tuple[Step, ...]
    labels: Labels | None
    error: str | None = None

    @property
    def dropped_by(self) -> Step | None:
        """The step that dropped the target, if one did."""
        return self.steps[-1] if self.labels is None and self.error is None else None


class Relabeler:
    """Rules made ready to be applied to many label sets.

    Args:
      configs: the rules, in order.
      scheme: which names of labels are valid.

    Attributes:
      configs: the rules.

    Raises:
      FieldError: a rule can't be used.
    """

    __slots__ = ("_appliers", "_rules", "configs")

    def __init__(self, configs: Sequence[RelabelConfig], scheme: NameScheme = "utf8") -> None:
        self.configs = tuple(configs)
        for config in self.configs:
            config.validate(scheme)
        self._rules = tuple(_rule(config, scheme) for config in self.configs)
        self._appliers = tuple(rule.apply for rule in self._rules)

    def relabel(self, labels: Mapping[str, str]) -> dict[str, str] | None:
        """Return what the rules make of ``labels``, or ``None`` if they drop the target.

        A label with an empty value counts as missing, and is not returned.

        Raises:
          RelabelError: they make too much of it.
        """
        result = _copied(labels)
        for apply in self._appliers:
            if not apply(result):
                return None
        return result

    def explain(self, labels: Mapping[str, str]) -> Trace:
        """Return what each of the rules does, on the way to what :meth:`relabel` returns."""
        result = _copied(labels)
        steps: list[Step] = []
        for index, rule in enumerate(self._rules):
            before = result.copy()
            try:
                value = None if rule.value is None else rule.value(before)
                matched = None if rule.matches is None or value is None else rule.matches(value)
                kept = rule.apply(result)
            except RelabelError as error:
                return Trace(tuple(steps), None, str(error))
            steps.append(Step(index, rule.config, value, matched, _changes(before, result), kept))
            if not kept:
                return Trace(tuple(steps), None)
        return Trace(tuple(steps), Labels(result))


def _copied(labels: Mapping[str, str]) -> dict[str, str]:
    # items() of other mappings is quicker than look-ups by name.
    result = labels.copy() if type(labels) is dict else dict(labels.items())
    if not all(result.values()):
        return {name: value for name, value in result.items() if value}
    return result


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[LabelChange, ...]:
    names = sorted(before.keys() | after.keys())
    changes = [LabelChange(name, before.get(name), after.get(name)) for name in names]
    return tuple([change for change in changes if change.before != change.after])


def relabel(
    labels: Mapping[str, str], configs: Sequence[RelabelConfig], scheme: NameScheme = "utf8"
) -> dict[str, str] | None:
    """Do as :meth:`Relabeler.relabel`, once. For many label sets make a :class:`Relabeler`.

    >>> relabel({"a": "x:80"}, [RelabelConfig(("a",), regex="(.*):80", target_label="host")])
    {'a': 'x:80', 'host': 'x'}
    """
    return Relabeler(configs, scheme).relabel(labels)


def explain(labels: Mapping[str, str], configs: Sequence[RelabelConfig], scheme: NameScheme = "utf8") -> Trace:
    """Do as :meth:`Relabeler.explain`, once. For many label sets make a :class:`Relabeler`."""
    return Relabeler(configs, scheme).explain(labels)
