"""Walking through znodes that may change between any two answers."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

import pytest
import trio
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from trio_sd.discovery.zookeeper.events import LostError
from trio_sd.discovery.zookeeper.protocol import Answer, Data, EventType, Exists, Read, Refusal, ZnodeEvent
from trio_sd.discovery.zookeeper.tree import Tree
from trio_sd.discovery.zookeeper.walk import Walk
from trio_sd.targets import Labels

NO_NODE = Refusal(-101)
NO_AUTH = Refusal(-102)

Change = tuple[str, str]
"""What is done ("write", "delete"), and to which path."""


def parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


class FakeServer:
    """Znodes, and the watches of one client, as a server keeps them.

    ``changes``: what happens just before the answer of that number, counted from 0.
    """

    def __init__(self, paths: Iterable[str] = (), *, recursive: Iterable[str] = ()) -> None:
        self.znodes: dict[str, tuple[bytes, int]] = {"/": (b"", 0)}
        self.ephemeral: set[str] = set()
        self.refused: set[tuple[Read, str]] = set()
        self.data_watches: set[str] = set()
        self.child_watches: set[str] = set()
        self.recursive = tuple(recursive)
        self.events: deque[ZnodeEvent] = deque()
        self.asked: list[tuple[Read, str]] = []
        self.watched: list[bool] = []
        self.changes: dict[int, Callable[[], None]] = {}
        self.created: dict[str, int] = {}
        self._zxid = 0
        for path in paths:
            self.write(path)

    def children(self, path: str) -> list[str]:
        return [one for one in self.znodes if one != "/" and parent(one) == path]

    def write(self, path: str) -> None:
        """Create a znode, and the parents that it needs, or write it. Its content names it and the transaction."""
        if path not in self.znodes and parent(path) not in self.znodes:
            self.write(parent(path))
        self._zxid += 1
        new = path not in self.znodes
        if new:
            self.created[path] = self._zxid
        self.znodes[path] = (f"{path}@{self._zxid}".encode(), self._zxid)
        self._tell(EventType.CREATED if new else EventType.DATA, path)

    def delete(self, path: str) -> None:
        """Delete a znode and all below it."""
        for child in self.children(path):
            self.delete(child)
        if path != "/" and path in self.znodes:
            del self.znodes[path]
            self._tell(EventType.DELETED, path)

    def _tell(self, kind: EventType, path: str) -> None:
        below = any(path == root or path.startswith(root.rstrip("/") + "/") for root in self.recursive)
        if below or path in self.data_watches or (kind is EventType.DELETED and path in self.child_watches):
            self.events.append(ZnodeEvent(kind, path))
        self.data_watches.discard(path)
        if kind is EventType.DELETED:
            self.child_watches.discard(path)
        if kind is not EventType.DATA and parent(path) in self.child_watches:
            self.child_watches.discard(parent(path))
            self.events.append(ZnodeEvent(EventType.CHILDREN, parent(path)))

    async def read(
        self, reads: Sequence[tuple[Read, str]], take: Callable[[Read, str, Answer], None], *, watch: bool
    ) -> None:
        for what, path in reads:
            await trio.lowlevel.checkpoint()
            if len(self.asked) in self.changes:
                self.changes.pop(len(self.asked))()
            self.asked.append((what, path))
            self.watched.append(watch)
            take(what, path, self._answer(what, path, watch=watch))

    def _answer(self, what: Read, path: str, *, watch: bool) -> Answer:
        if path in self.znodes and (what, path) in self.refused:
            return NO_AUTH
        if watch and (path in self.znodes or what is Read.EXISTS):
            (self.child_watches if what is Read.CHILDREN else self.data_watches).add(path)
        if path not in self.znodes:
            return NO_NODE
        children = self.children(path)
        match what:
            case Read.EXISTS:
                return Exists()
            case Read.CHILDREN:
                return tuple(child.rpartition("/")[2] for child in children)
            case _:
                content, mzxid = self.znodes[path]
                return Data(content, mzxid, path in self.ephemeral, len(children), self.created.get(path, 0))


def new_tree() -> Tree:
    return Tree(lambda data, path: Labels({"__address__": data.decode()}))


def shown(tree: Tree) -> dict[str, str]:
    return {group.source: group.targets[0]["__address__"] for group in tree.take_all()}


def content(server: FakeServer, root: str = "/") -> dict[str, str]:
    """Return what a tree should show: all znodes from ``root`` on; the root of all has no data."""
    prefix = root.rstrip("/") + "/"
    return {
        path: data.decode() for path, (data, _) in server.znodes.items() if data and (path + "/").startswith(prefix)
    }


async def walk(
    server: FakeServer,
    tree: Tree,
    roots: Sequence[str],
    *,
    watch: bool = False,
    full: bool = True,
    reads: Sequence[tuple[Read, str]] | None = None,
) -> Walk:
    one = Walk(server, tree, roots, watch=watch, full=full)
    with trio.fail_after(5):
        await one.run([(Read.DATA, root) for root in roots] if reads is None else reads)
    return one


both = pytest.mark.parametrize("watch", [False, True], ids=["recursive", "watched singly"])


@both
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("root", ["/", "/a", "/a/b"])
async def test_everything_from_a_root_on_is_read_once(root: str, full: bool, watch: bool) -> None:
    server = FakeServer(["/a", "/a/b", "/a/b/1", "/a/b/2", "/a/c", "/ab", "/d/e/f"])
    tree = new_tree()
    done = await walk(server, tree, [root], watch=watch, full=full)
    assert shown(tree) == content(server, root)
    assert max(Counter(server.asked).values()) == 1
    assert done.count == len(server.asked)
    assert set(server.watched) == {watch}


@both
async def test_several_roots_are_read_together(watch: bool) -> None:
    server = FakeServer(["/a/1", "/b/2", "/c/3"])
    tree = new_tree()
    await walk(server, tree, ["/a", "/c"], watch=watch)
    assert shown(tree) == content(server, "/a") | content(server, "/c")


@both
async def test_nothing_to_read_is_no_answers(watch: bool) -> None:
    server = FakeServer()
    assert (await walk(server, new_tree(), ["/a"], watch=watch, reads=[])).count == 0
    assert server.asked == []


@both
async def test_fifty_levels_are_read(watch: bool) -> None:
    server = FakeServer(["/" + "/".join(f"level{number}" for number in range(50))])
    tree = new_tree()
    done = await walk(server, tree, ["/"], watch=watch)
    assert shown(tree) == content(server)
    assert len(tree) == 51
    assert done.count == 51 + 50 + watch  # the data of all, and the names below all but the last


async def test_without_watches_names_are_read_only_where_there_are_some() -> None:
    server = FakeServer(["/a/1", "/a/2"])
    done = await walk(server, new_tree(), ["/a"])
    assert server.asked == [(Read.DATA, "/a"), (Read.CHILDREN, "/a"), (Read.DATA, "/a/1"), (Read.DATA, "/a/2")]
    assert done.count == 4


async def test_each_znode_is_watched_for_its_data_and_its_children_if_it_can_have_any() -> None:
    server = FakeServer(["/a/1", "/a/2"])
    server.ephemeral = {"/a/2"}
    await walk(server, new_tree(), ["/a"], watch=True)
    assert server.data_watches == {"/a", "/a/1", "/a/2"}
    assert server.child_watches == {"/a", "/a/1"}
    assert (Read.CHILDREN, "/a/2") not in server.asked


# --- What is known already ---


@both
async def test_a_look_does_not_go_on_below_what_is_known(watch: bool) -> None:
    server = FakeServer(["/a", "/a/1", "/a/2"])
    tree = new_tree()
    await walk(server, tree, ["/a"], watch=watch)
    server.asked.clear()
    server.write("/a")
    await walk(server, tree, ["/a"], watch=watch, full=False)
    assert server.asked == [(Read.DATA, "/a")]
    assert shown(tree) == content(server)


@both
async def test_a_full_walk_goes_on_below_what_is_known(watch: bool) -> None:
    server = FakeServer(["/a", "/a/1", "/a/2"])
    tree = new_tree()
    await walk(server, tree, ["/a"], watch=watch)
    before = set(server.asked)
    server.asked.clear()
    await walk(server, tree, ["/a"], watch=watch)
    assert set(server.asked) == before


async def test_of_names_that_were_told_to_have_changed_only_the_new_ones_are_read() -> None:
    server = FakeServer(["/a/1", "/a/2"])
    tree = new_tree()
    await walk(server, tree, ["/a"], watch=True)
    server.write("/a/3/x")
    server.asked.clear()
    await walk(server, tree, ["/a"], watch=True, full=False, reads=[(Read.CHILDREN, "/a")])
    assert shown(tree) == content(server)
    assert {path for _, path in server.asked} == {"/a", "/a/3", "/a/3/x"}


@both
async def test_a_subtree_that_is_new_is_read_to_its_end(watch: bool) -> None:
    server = FakeServer(["/a"])
    tree = new_tree()
    await walk(server, tree, ["/a"], watch=watch)
    server.write("/a/b/c/d")
    await walk(server, tree, ["/a"], watch=watch, full=False, reads=[(Read.DATA, "/a/b")])
    assert shown(tree) == content(server)


# --- What is not there ---


async def test_an_absent_root_is_nothing() -> None:
    server = FakeServer(["/b"])
    tree = new_tree()
    done = await walk(server, tree, ["/a", "/b"])
    assert shown(tree) == content(server)
    assert "/a" not in tree
    assert done.count == 2


async def test_an_absent_root_is_waited_for() -> None:
    server = FakeServer()
    tree = new_tree()
    done = await walk(server, tree, ["/a"], watch=True)
    assert server.asked == [(Read.DATA, "/a"), (Read.EXISTS, "/a")]
    assert server.data_watches == {"/a"}
    assert done.count == 2
    server.write("/a")
    assert list(server.events) == [ZnodeEvent(EventType.CREATED, "/a")]


async def test_a_root_that_was_created_a_moment_ago_is_read() -> None:
    server = FakeServer()
    server.changes[1] = lambda: server.write("/a/b")
    tree = new_tree()
    await walk(server, tree, ["/a"], watch=True)
    assert shown(tree) == content(server)
    assert server.data_watches == {"/a", "/a/b"}
    assert server.child_watches == {"/a", "/a/b"}


async def test_a_root_that_comes_and_goes_is_waited_for() -> None:
    server = FakeServer()
    server.changes = {1: lambda: server.write("/a"), 2: lambda: server.delete("/a")}
    tree = new_tree()
    await walk(server, tree, ["/a"], watch=True)
    assert server.asked == [(Read.DATA, "/a"), (Read.EXISTS, "/a")] * 2
    assert "/a" not in tree
    assert server.data_watches == {"/a"}


async def test_a_root_whose_names_can_not_be_read_because_it_went_is_waited_for() -> None:
    server = FakeServer(["/a/b"])
    server.changes[1] = lambda: server.delete("/a")
    tree = new_tree()
    await walk(server, tree, ["/a"], watch=True)
    assert len(tree) == 0
    assert server.data_watches == {"/a"}


@both
async def test_what_is_no_root_is_not_waited_for(watch: bool) -> None:
    server = FakeServer(["/a"])
    tree = new_tree()
    done = await walk(server, tree, ["/a"], watch=watch, full=False, reads=[(Read.DATA, "/a/b")])
    assert server.asked == [(Read.DATA, "/a/b")]
    assert done.count == 1


@both
async def test_what_vanishes_between_its_name_and_its_data_is_nothing(watch: bool) -> None:
    server = FakeServer(["/a/1", "/a/2", "/a/3"])
    server.changes[3] = lambda: server.delete("/a/2")
    tree = new_tree()
    await walk(server, tree, ["/a"], watch=watch)
    assert shown(tree) == content(server)
    assert "/a/2" not in tree


@both
async def test_what_vanishes_between_its_data_and_its_names_is_nothing(watch: bool) -> None:
    server = FakeServer(["/a/1/x", "/a/2/y"])
    server.changes[4] = lambda: server.delete("/a/1")
    tree = new_tree()
    await walk(server, tree, ["/a"], watch=watch)
    assert shown(tree) == content(server)
    assert "/a/1" not in tree


# --- What may not be read ---


@both
async def test_a_refused_znode_is_a_trouble_and_the_walk_goes_on(watch: bool) -> None:
    server = FakeServer(["/a/1", "/a/2/x", "/a/3"])
    server.refused = {(Read.DATA, "/a/2")}
    tree = new_tree()
    await walk(server, tree, ["/a"], watch=watch)
    assert [trouble.path for trouble in tree.troubles] == ["/a/2"]
    assert set(shown(tree)) == {"/a", "/a/1", "/a/3"}
    assert (Read.CHILDREN, "/a/2") not in server.asked


@both
async def test_a_refused_root_is_a_trouble(watch: bool) -> None:
    server = FakeServer(["/a/1"])
    server.refused = {(Read.DATA, "/a")}
    tree = new_tree()
    done = await walk(server, tree, ["/a"], watch=watch)
    assert [trouble.path for trouble in tree.troubles] == ["/a"]
    assert done.count == 1


@both
async def test_a_znode_whose_names_are_refused_keeps_what_is_below_it(watch: bool) -> None:
    server = FakeServer(["/a", "/a/1/x"])
    tree = new_tree()
    for refused in (set[tuple[Read, str]](), {(Read.CHILDREN, "/a/1")}):
        server.refused = refused
        tree.begin_full_read()
        await walk(server, tree, ["/a"], watch=watch)
        tree.end_full_read()
    assert [(trouble.path, trouble.stale) for trouble in tree.troubles] == [("/a/1", True)]
    assert shown(tree) == content(server)


# --- Breaking off ---


class BrokenServer(FakeServer):
    """Loses the connection before one of its answers."""

    async def read(
        self, reads: Sequence[tuple[Read, str]], take: Callable[[Read, str, Answer], None], *, watch: bool
    ) -> None:
        def take_or_fail(what: Read, path: str, answer: Answer) -> None:
            if len(self.asked) > 4:
                raise LostError("lost")
            take(what, path, answer)

        await super().read(reads, take_or_fail, watch=watch)


@both
async def test_what_was_read_before_a_failure_is_taken(watch: bool) -> None:
    server = BrokenServer(["/a/1", "/a/2", "/a/3"])
    tree = new_tree()
    one = Walk(server, tree, ["/a"], watch=watch, full=True)
    with trio.fail_after(5), pytest.raises(LostError, match=re.escape("lost")):
        await one.run([(Read.DATA, "/a")])
    assert one.count == 4
    assert set(shown(tree)) == {"/a", "/a/1", "/a/2"}


# --- Whatever changes, and whenever ---

PATHS = ["/a", "/a/1", "/a/1/x", "/a/2", "/a/2/y", "/b", "/b/1"]
ROOTS = ("/a", "/b")


async def follow(server: FakeServer, tree: Tree, *, watch: bool) -> None:
    """Do what events say until there are none, as the run loop does: look at each znode that was told of."""
    looks = 0
    while server.events:
        told: dict[str, set[EventType]] = {}
        while server.events:
            event = server.events.popleft()
            told.setdefault(event.path, set()).add(event.type)
        reads = []
        for path, kinds in told.items():
            if EventType.DELETED in kinds:
                tree.remove(path)
            if (kinds != {EventType.DELETED} and kinds != {EventType.CHILDREN}) or (
                watch and EventType.DELETED in kinds
            ):
                reads.append((Read.DATA, path))
            if EventType.CHILDREN in kinds:
                reads.append((Read.CHILDREN, path))
        await walk(server, tree, ROOTS, watch=watch, full=False, reads=reads)
        looks += 1
        assert looks < 100, "events never end"


@settings(max_examples=100, phases=[Phase.explicit, Phase.generate])  # finding a smaller example takes minutes
@given(
    watch=st.booleans(),
    first=st.lists(st.sampled_from(PATHS), max_size=5),
    changes=st.dictionaries(
        st.integers(0, 25),
        st.lists(st.tuples(st.sampled_from(["write", "delete"]), st.sampled_from(PATHS)), max_size=3),
    ),
    refused=st.none() | st.sampled_from(PATHS),
)
def test_whatever_changes_while_reading_the_tree_is_right_in_the_end(
    watch: bool, first: list[str], changes: dict[int, list[Change]], refused: str | None
) -> None:
    server = FakeServer(first, recursive=() if watch else ROOTS)
    tree = new_tree()
    if refused is not None:
        server.refused = {(Read.DATA, refused)}

    def change(steps: list[Change]) -> None:
        for action, path in steps:
            (server.write if action == "write" else server.delete)(path)

    async def main() -> None:
        server.events.clear()
        server.changes = {at: lambda steps=steps: change(steps) for at, steps in changes.items()}  # type: ignore[misc]
        tree.begin_full_read()
        await walk(server, tree, ROOTS, watch=watch)
        tree.end_full_read()
        await follow(server, tree, watch=watch)
        for late in [server.changes.pop(at) for at in sorted(server.changes)]:  # what came too late for the walk
            late()
            await follow(server, tree, watch=watch)

    trio.run(main)

    def readable(path: str) -> bool:
        return refused is None or not (path + "/").startswith(refused + "/")

    expected = {path: data for path, data in content(server).items() if readable(path)}
    assert {path: data for path, data in shown(tree).items() if readable(path)} == expected
    assert {path for path in PATHS if path in tree and readable(path)} == set(filter(readable, server.znodes)) - {"/"}
