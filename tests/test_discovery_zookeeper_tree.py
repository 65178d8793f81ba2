"""What is known of znodes: each rule as a table, and all of them against a model."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from trio_sd.discovery.zookeeper.members import MemberError
from trio_sd.discovery.zookeeper.protocol import Data, Refusal
from trio_sd.discovery.zookeeper.tree import Tree, Trouble, excerpt
from trio_sd.targets import Labels, TargetGroup
from trio_sd.testing import group

NO_AUTH = Refusal(-102)


def parse(data: bytes, path: str) -> Labels:
    """Take every word but "bad" for an address."""
    if data == b"bad":
        raise MemberError("found bad, expected good")
    return Labels({"__address__": data.decode(), "path": path})


def member(source: str, address: str) -> TargetGroup:
    return TargetGroup(source, [{"__address__": address, "path": source}])


def data(content: bytes | str, mzxid: int, *, children: int = 0, czxid: int = 0) -> Data:
    return Data(content.encode() if isinstance(content, str) else content, mzxid, False, children, czxid)


def tree_of(known: Mapping[str, str] | None = None, chroot: str = "") -> Tree:
    """Return a tree whose last run has found these addresses, by source."""
    return Tree(parse, chroot, lambda: {source: member(source, address) for source, address in (known or {}).items()})


def shown(tree: Tree) -> dict[str, str]:
    """Return the address of each source that is shown, and forget what has changed."""
    groups = tree.take_all()
    assert len({one.source for one in groups}) == len(groups), "no two groups of one source"
    assert len(groups) == tree.members
    return {one.source: one.targets[0]["__address__"] for one in groups}


def full_read(tree: Tree, znodes: Mapping[str, Data | Refusal]) -> None:
    tree.begin_full_read()
    for path, found in znodes.items():
        if isinstance(found, Refusal):
            tree.refuse(path, found)
        else:
            tree.put(path, found)
    tree.end_full_read()


def troubled(tree: Tree) -> dict[str, bool]:
    """Return of each znode that can't be used whether its last good group is shown."""
    assert len({trouble.path for trouble in tree.troubles}) == len(tree.troubles)
    return {trouble.path: trouble.stale for trouble in tree.troubles}


# --- A znode ---


def test_a_member_is_a_group_named_by_its_path() -> None:
    tree = tree_of()
    tree.put("/a/b", data("x", 1))
    assert tree.take_changes() == [member("/a/b", "x")]
    assert tree.take_changes() == []
    assert tree.take_all() == [member("/a/b", "x")]
    assert "/a/b" in tree
    assert "/a" not in tree


def test_a_znode_without_data_is_nothing_to_talk_about() -> None:
    tree = tree_of()
    tree.put("/a", data("", 1, children=1))
    assert (len(tree), tree.members, shown(tree), troubled(tree), tree.take_new_troubles()) == (1, 0, {}, {}, [])
    assert not tree.changed_paths


def test_a_znode_that_is_gone_takes_its_group_with_it() -> None:
    tree = tree_of()
    tree.put("/a", data("x", 1))
    tree.take_changes()
    tree.remove("/a")
    assert tree.take_changes() == [group("/a")]
    assert (len(tree), tree.members) == (0, 0)
    tree.remove("/a")
    assert tree.take_changes() == []


def test_new_data_replace_what_was_shown_and_equal_ones_change_nothing() -> None:
    tree = tree_of()
    tree.put("/a", data("x", 1))
    assert tree.take_changes() == [member("/a", "x")]
    tree.put("/a", data("x", 1))
    tree.put("/a", data("x", 2))
    assert tree.take_changes() == []
    tree.put("/a", data("y", 3))
    assert tree.take_changes() == [member("/a", "y")]


def test_data_that_do_not_parse_are_a_trouble_and_leave_the_znode_out() -> None:
    tree = tree_of()
    tree.put("/a", data("bad", 1))
    assert (len(tree), tree.members, shown(tree)) == (1, 0, {})
    assert list(tree.troubles) == [Trouble("/a", "found bad, expected good", False)]
    assert str(*tree.troubles) == 'znode "/a": found bad, expected good; it is left out'


def test_data_that_do_not_parse_any_more_leave_the_last_good_group() -> None:
    tree = tree_of()
    tree.put("/a", data("x", 1))
    tree.take_changes()
    tree.put("/a", data("bad", 2))
    assert tree.take_changes() == []
    assert shown(tree) == {"/a": "x"}
    assert str(*tree.troubles) == 'znode "/a": found bad, expected good; its last good target is still shown'


def test_data_that_do_not_parse_leave_the_group_of_the_run_before() -> None:
    tree = tree_of({"/a": "old", "/b": "old"})
    full_read(tree, {"/a": data("bad", 1), "/b": data("new", 2)})
    assert shown(tree) == {"/a": "old", "/b": "new"}
    assert troubled(tree) == {"/a": True}


@pytest.mark.parametrize(
    ("code", "reason"), [(-102, "the server does not allow to read it"), (-8, "ZooKeeper error -8")]
)
def test_a_refusal_is_a_trouble_that_leaves_the_last_good_group(code: int, reason: str) -> None:
    tree = tree_of({"/known": "old"})
    tree.begin_full_read()
    tree.put("/had", data("x", 1))
    for path in ("/had", "/known", "/none"):
        tree.refuse(path, Refusal(code))
    assert shown(tree) == {"/had": "x", "/known": "old"}
    assert [(t.path, t.reason, t.stale) for t in tree.troubles] == [
        ("/had", reason, True),
        ("/known", reason, True),
        ("/none", reason, False),
    ]


def test_a_znode_that_is_made_anew_without_data_while_nobody_looks_has_no_group() -> None:
    # As when a member is deleted and then becomes the parent of others, while the connection is lost.
    tree = tree_of()
    full_read(tree, {"/a": data("x", 1)})
    full_read(tree, {"/a": data("", 3, children=1, czxid=3), "/a/b": data("y", 4)})
    assert shown(tree) == {"/a/b": "y"}


def test_data_that_become_empty_count_alike_in_this_run_and_after_another_one() -> None:
    # Whether a group is kept must not depend on whether discovery was started again in between.
    within = tree_of()
    full_read(within, {"/a": data("x", 1)})
    full_read(within, {"/a": data("", 2)})
    after = tree_of({"/a": "x"})
    full_read(after, {"/a": data("", 2)})
    assert (shown(within), troubled(within)) == (shown(after), troubled(after))


def test_a_trouble_ends_when_the_znode_can_be_used_again_or_is_gone() -> None:
    tree = tree_of()
    tree.put("/a", data("bad", 1))
    tree.put("/b", data("bad", 1))
    tree.refuse("/c", NO_AUTH)
    tree.put("/a", data("x", 2))
    tree.remove("/b")
    tree.put("/c", data("y", 1))
    assert shown(tree) == {"/a": "x", "/c": "y"}
    assert troubled(tree) == {}


def test_a_znode_that_may_be_read_again_is_what_it_was_even_if_nobody_wrote_it() -> None:
    tree = tree_of()
    tree.put("/a", data("bad", 1))
    tree.refuse("/a", NO_AUTH)
    tree.put("/a", data("bad", 1))
    assert [trouble.reason for trouble in tree.troubles] == ["found bad, expected good"]
    tree.put("/b", data("x", 2))
    tree.refuse("/b", NO_AUTH)
    tree.put("/b", data("x", 2))
    assert troubled(tree) == {"/a": False}


def test_a_znode_that_is_made_anew_does_not_inherit() -> None:
    tree = tree_of()
    tree.put("/a", data("x", 1))
    tree.remove("/a")
    tree.put("/a", data("bad", 3))
    assert shown(tree) == {}
    assert troubled(tree) == {"/a": False}


# --- Troubles are told once ---


def test_a_trouble_is_told_once() -> None:
    tree = tree_of()
    tree.put("/a", data("bad", 1))
    assert [trouble.path for trouble in tree.take_new_troubles()] == ["/a"]
    for mzxid in (1, 2, 3):
        tree.put("/a", data("bad", mzxid))
    tree.refuse("/a", NO_AUTH)
    full_read(tree, {"/a": data("bad", 3)})
    assert tree.take_new_troubles() == []
    assert len(tree.troubles) == 1


def test_a_trouble_that_ended_is_told_again_when_it_is_back() -> None:
    tree = tree_of()
    for mzxid in (1, 3):
        tree.put("/a", data("bad", mzxid))
        assert [trouble.path for trouble in tree.take_new_troubles()] == ["/a"]
        tree.put("/a", data("x", mzxid + 1))


def test_a_trouble_that_ended_before_it_was_told_is_not_told() -> None:
    tree = tree_of()
    for path in ("/a", "/b", "/c"):
        tree.put(path, data("bad", 1))
    tree.put("/a", data("x", 2))
    tree.remove("/b")
    assert [trouble.path for trouble in tree.take_new_troubles()] == ["/c"]


def test_of_many_troubles_some_are_told_and_the_rest_are_counted() -> None:
    tree = tree_of()
    for number in range(13):
        tree.put(f"/{number}", data("bad", 1))
    assert excerpt(tree.troubles)[-1] == "3 more znodes like that"
    assert len(excerpt(tree.troubles)) == 11
    assert excerpt(tree.troubles, 13) == tuple(map(str, tree.troubles))


# --- Removal needs proof ---


def test_a_full_read_removes_what_it_did_not_meet() -> None:
    tree = tree_of()
    full_read(tree, {path: data("x", 1) for path in ("/a", "/a/b", "/c")})
    tree.take_changes()
    full_read(tree, {"/a": data("x", 1)})
    assert tree.take_changes() == [group("/a/b"), group("/c")]
    assert len(tree) == 1


def test_a_full_read_that_broke_off_removes_nothing() -> None:
    tree = tree_of({"/d": "old"})
    full_read(tree, {"/a": data("x", 1), "/b": data("x", 1)})
    tree.begin_full_read()
    tree.put("/a", data("y", 2))
    assert shown(tree) == {"/a": "y", "/b": "x"}
    full_read(tree, {"/a": data("y", 2), "/b": data("x", 1)})
    assert shown(tree) == {"/a": "y", "/b": "x"}


def test_what_the_run_before_has_found_lasts_through_reads_that_broke_off() -> None:
    tree = tree_of({"/a": "old", "/b": "old"})
    tree.begin_full_read()
    full_read(tree, {"/a": data("bad", 1)})
    assert shown(tree) == {"/a": "old"}
    tree.put("/b", data("bad", 2))  # it was gone, so what it was in the run before is over
    assert shown(tree) == {"/a": "old"}


def test_what_lies_below_a_znode_that_may_not_be_read_is_kept() -> None:
    tree = tree_of()
    below = {path: data("x", 1) for path in ("/a/b", "/a/b/c", "/ab", "/d")}
    full_read(tree, {"/": data("", 1), "/a": data("", 1), **below})
    full_read(tree, {"/": data("", 1), "/a": NO_AUTH})
    assert shown(tree) == {"/a/b": "x", "/a/b/c": "x"}
    full_read(tree, {"/": data("", 1), "/a": NO_AUTH})
    assert shown(tree) == {"/a/b": "x", "/a/b/c": "x"}
    full_read(tree, {"/": data("", 1), "/a": data("", 1), "/a/b": data("x", 1)})
    assert shown(tree) == {"/a/b": "x"}
    assert troubled(tree) == {}


def test_what_lies_below_the_root_of_all_that_may_not_be_read_is_kept() -> None:
    tree = tree_of({"/b": "old"})
    full_read(tree, {"/": NO_AUTH})
    assert shown(tree) == {"/b": "old"}
    assert troubled(tree) == {"/": False, "/b": True}


@pytest.mark.parametrize("chroot", ["", "/c", "/c/d"])
def test_what_the_run_before_has_found_below_a_znode_that_may_not_be_read_is_kept(chroot: str) -> None:
    tree = tree_of({"/a": "1", "/a/b": "2", "/ab": "3", "/x": "4"}, chroot)
    full_read(tree, {chroot or "/": data("", 1), f"{chroot}/a": NO_AUTH, f"{chroot}/x": data("5", 2)})
    assert shown(tree) == {"/a": "1", "/a/b": "2", "/x": "5"}
    assert troubled(tree) == {"/a": True, "/a/b": True}
    assert sorted(trouble.path for trouble in tree.take_new_troubles()) == ["/a", "/a/b"]
    full_read(tree, {chroot or "/": data("", 1), f"{chroot}/a": data("", 7), f"{chroot}/x": data("5", 2)})
    assert shown(tree) == {"/x": "5", "/a": "1"} or shown(tree) == {"/x": "5"}


@pytest.mark.parametrize("gone", ["met no more", "said so"])
def test_what_lay_below_a_znode_that_could_not_be_read_is_gone_with_it(gone: str) -> None:
    tree = tree_of()
    full_read(tree, {"/": data("", 1), "/a": data("", 1), "/a/b": data("x", 1), "/a/b/c": data("x", 1)})
    full_read(tree, {"/": data("", 1), "/a": NO_AUTH})
    assert shown(tree) == {"/a/b": "x", "/a/b/c": "x"}
    if gone == "said so":
        tree.remove("/a")
    full_read(tree, {"/": data("", 1)})  # nothing above them may not be read: they were looked for, and not met
    assert shown(tree) == {}
    assert (len(tree), troubled(tree)) == (1, {})


@pytest.mark.parametrize("gone", ["met no more", "said so"])
def test_what_the_run_before_has_found_below_a_znode_is_gone_with_it(gone: str) -> None:
    tree = tree_of({"/a/b": "old", "/a/b/c": "old", "/a/b/c/d": "old"})
    full_read(tree, {"/": data("", 1), "/a": NO_AUTH})
    assert len(shown(tree)) == 3
    if gone == "said so":
        tree.remove("/a")
    full_read(tree, {"/": data("", 1)})
    assert shown(tree) == {}
    assert (len(tree), troubled(tree)) == (1, {})


def test_each_of_what_is_gone_is_told_once() -> None:
    tree = tree_of()
    full_read(tree, {f"/{number}": data("x", 1) for number in range(5)})
    tree.take_all()
    full_read(tree, {})
    assert sorted(tree.take_changes(), key=lambda one: one.source) == [group(f"/{number}") for number in range(5)]
    assert (len(tree), tree.members) == (0, 0)
    assert tree.take_changes() == []


# --- Paths below a chroot ---


@pytest.mark.parametrize(
    ("chroot", "path", "source"),
    [("", "/", "/"), ("", "/a/b", "/a/b"), ("/c", "/c", "/"), ("/c", "/c/a", "/a"), ("/c/d", "/c/d/c/d", "/c/d")],
)
def test_a_chroot_is_not_shown(chroot: str, path: str, source: str) -> None:
    tree = tree_of({source: "old"}, chroot)
    full_read(tree, {path: data("bad", 1)})
    assert shown(tree) == {source: "old"}
    assert [trouble.path for trouble in tree.take_new_troubles()] == [source]
    tree.put(path, data("x", 2))
    assert tree.take_changes() == [member(source, "x")]
    tree.remove(path)
    assert tree.take_changes() == [group(source)]


@pytest.mark.parametrize("chroot", ["", "/c"])
def test_the_top_itself_can_be_a_member_that_may_not_be_read(chroot: str) -> None:
    tree = tree_of({"/": "top", "/a": "below"}, chroot)
    full_read(tree, {chroot or "/": NO_AUTH})
    assert shown(tree) == {"/": "top", "/a": "below"}
    assert len(tree) == 2
    assert troubled(tree) == {"/": True, "/a": True}


# --- What was taken ---


@pytest.mark.parametrize("taken", [False, True])
def test_a_group_that_is_back_to_what_was_taken_has_not_changed(taken: bool) -> None:
    tree = tree_of()
    if taken:
        tree.put("/a", data("x", 1))
        tree.take_changes()
        tree.put("/a", data("y", 2))
        tree.put("/a", data("x", 3))
    else:
        tree.put("/a", data("x", 1))
        tree.remove("/a")
    assert list(tree.changed_paths) == []
    assert tree.take_changes() == []


def test_the_run_before_is_asked_once_and_not_before_it_is_needed() -> None:
    asked: list[str] = []

    def last_known() -> Mapping[str, TargetGroup]:
        asked.append("again")
        return {}

    tree = Tree(parse, "", last_known)
    tree.put("/a", data("x", 1))
    assert not asked
    for _ in range(3):
        tree.begin_full_read()
        tree.end_full_read()
    assert len(asked) == 1


# --- All of it, against a model ---

PATHS = ["/", "/a", "/a/b", "/a/b/c", "/a/d", "/ab", "/e"]
CONTENTS = [b"", b"bad", b"x", b"y"]


def above(path: str) -> list[str]:
    """Return the paths above one, with what the tree calls the top."""
    parts = path.strip("/").split("/")
    return [] if path == "/" else ["/" + "/".join(parts[:end]) for end in range(len(parts))]


class Model:
    """The three rules, as simply as they can be said."""

    def __init__(self, known: Mapping[str, str]) -> None:
        self.start = dict(known)
        self.known: dict[str, str] = {}
        self.znodes: dict[str, str | None] = {}  # what is shown of each
        self.troubles: dict[str, bool] = {}
        self.mzxid: dict[str, int] = {}  # as last read; none where it could not be read
        self.met: set[str] = set()
        self.reads = 0

    def put(self, path: str, content: bytes, mzxid: int) -> None:
        self.met.add(path)
        if self.mzxid.get(path) == mzxid:
            return
        before = self.znodes.get(path)
        if content == b"bad":
            kept = before or self.known.get(path)
            self.znodes[path] = kept
            self.troubles[path] = kept is not None
        else:
            self.znodes[path] = content.decode() or None
            self.troubles.pop(path, None)
        self.mzxid[path] = mzxid

    def refuse(self, path: str) -> None:
        self.met.add(path)
        kept = self.znodes[path] if path in self.znodes else self.known.get(path)
        self.znodes[path] = kept
        self.troubles[path] = kept is not None
        self.mzxid.pop(path, None)

    def remove(self, path: str) -> None:
        for facts in (self.znodes, self.troubles, self.mzxid):
            facts.pop(path, None)
        self.met.discard(path)

    def begin(self) -> None:
        if not self.reads:
            self.known = self.start
        self.reads += 1
        self.met = set()

    def end(self) -> None:
        # Met in this read, and could not be read: below it, nothing is proved.
        unread = {path for path in self.met if path not in self.mzxid}
        hidden = {path for path in (*self.znodes, *self.known) if unread & set(above(path))}
        for path in set(self.znodes) - self.met - hidden:
            self.remove(path)
        for path in hidden & set(self.known) - set(self.znodes):
            self.znodes[path] = self.known[path]
            self.troubles[path] = True
        self.known = {}


class TreeMachine(RuleBasedStateMachine):
    """Does the same to a tree and to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: dict[str, str] = {}
        self.told: set[str] = set()
        self.clock = 0
        self.reading = False
        self.now: dict[str, tuple[bytes, int]] = {}

    @initialize(
        known=st.dictionaries(st.sampled_from(PATHS), st.sampled_from(["old", "x"])),
        chroot=st.sampled_from(["", "/c", "/a"]),
    )
    def start(self, known: dict[str, str], chroot: str) -> None:
        self.chroot = chroot
        self.model = Model(known)
        self.tree = tree_of(known, chroot)

    def path(self, source: str) -> str:
        return self.chroot + source if source != "/" else self.chroot or "/"

    @rule(source=st.sampled_from(PATHS), content=st.sampled_from(CONTENTS))
    def write_and_read(self, source: str, content: bytes) -> None:
        self.clock += 1
        self.now[source] = (content, self.clock)
        self.read_again(source)

    @rule(source=st.sampled_from(PATHS))
    def read_again(self, source: str) -> None:
        if source in self.now:
            content, mzxid = self.now[source]
            if not content and (source in self.model.known or self.model.znodes.get(source) is not None):
                return  # tests of their own
            self.tree.put(self.path(source), Data(content, mzxid, False, 0, 0))
            self.model.put(source, content, mzxid)

    @rule(source=st.sampled_from(PATHS), code=st.sampled_from([-102, -8]))
    def refuse(self, source: str, code: int) -> None:
        self.tree.refuse(self.path(source), Refusal(code))
        self.model.refuse(source)

    @rule(source=st.sampled_from(PATHS))
    def remove(self, source: str) -> None:
        self.now.pop(source, None)
        self.tree.remove(self.path(source))
        self.model.remove(source)

    @rule()
    def begin(self) -> None:
        """Begin a full read; one that was under way is broken off."""
        self.reading = True
        self.tree.begin_full_read()
        self.model.begin()

    @precondition(lambda self: self.reading)
    @rule()
    def end(self) -> None:
        self.reading = False
        self.tree.end_full_read()
        self.model.end()
        self.now = {source: state for source, state in self.now.items() if source in self.model.znodes}

    @rule()
    def take_changes(self) -> None:
        groups = self.tree.take_changes()
        assert len({one.source for one in groups}) == len(groups)
        for one in groups:
            if one.targets:
                self.taken[one.source] = one.targets[0]["__address__"]
            else:
                self.taken.pop(one.source, None)
        assert self.taken == {source: shown for source, shown in self.model.znodes.items() if shown is not None}
        assert not self.tree.changed_paths

    @rule()
    def take_all(self) -> None:
        self.taken = shown(self.tree)
        assert self.taken == {source: shown for source, shown in self.model.znodes.items() if shown is not None}

    @rule()
    def tell_troubles(self) -> None:
        new = {trouble.path for trouble in self.tree.take_new_troubles()}
        assert not new & self.told
        self.told |= new
        assert self.told == set(self.model.troubles)

    @invariant()
    def same_counts_and_troubles(self) -> None:
        if not hasattr(self, "model"):
            return
        self.told &= set(self.model.troubles)
        assert len(self.tree) == len(self.model.znodes)
        assert self.tree.members == sum(shown is not None for shown in self.model.znodes.values())
        assert troubled(self.tree) == self.model.troubles
        assert all((self.path(source) in self.tree) == (source in self.model.znodes) for source in PATHS)


def test_the_tree_does_what_the_model_does() -> None:
    run_state_machine_as_test(TreeMachine, settings=settings(max_examples=80, stateful_step_count=25))
