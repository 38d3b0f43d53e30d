"""Answers that are kept: how many, how large, and for whom."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llm_node.api.conversation import Text, User
from llm_node.api.store import Kept, Store, size

OWNERS = st.sampled_from(["a", "b"])
NAMES = st.sampled_from(["1", "2", "3", "4", "5"])


def kept(text: str) -> Kept:
    messages = (User((Text(text),)),)
    return Kept({"id": text}, [], messages, size(messages))


@given(
    st.lists(st.tuples(st.sampled_from(["put", "get", "drop"]), OWNERS, NAMES, st.integers(0, 40))),
    st.integers(1, 4),
    st.integers(60, 400),
)
def test_the_last_used_are_kept(actions: list[tuple[str, str, str, int]], most: int, room: int) -> None:
    store = Store(most, room)
    model: dict[tuple[str, str], Kept] = {}  # the last used last
    for action, owner, name, length in actions:
        found = model.pop((owner, name), None)
        if action == "get":
            assert store.get(owner, name) is found
            if found is not None:
                model[owner, name] = found
        elif action == "drop":
            assert store.drop(owner, name) is (found is not None)
        else:
            new = kept("x" * length)
            store.put(owner, name, new)
            if new.size <= room:
                model[owner, name] = new
            while len(model) > most or sum(each.size for each in model.values()) > room:
                del model[next(iter(model))]
    for owner in ("a", "b"):
        for name in ("1", "2", "3", "4", "5"):
            assert store.get(owner, name) is model.get((owner, name))


def test_the_size_is_that_of_all_that_is_kept() -> None:
    messages = (User((Text("hi"),)),)
    found = Kept({"id": "r"}, [{"id": "m"}], messages, size(messages))
    assert found.size == len('{"id":"r"}' + '[{"id":"m"}]' + '{"user":{"parts":[{"text":"hi"}],"name":null}}')
