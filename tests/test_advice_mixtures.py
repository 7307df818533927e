"""The fixes of messages about mixtures."""

import pytest
from advice import Row

from datarax_tfds import Cursor, MixtureSource

WEIGHTS = {"web": 0.7, "code": 0.3}
EQUAL = "use weights={...}"
A_CURSOR = "use at=Cursor(epoch=0, index=0), with an index below the records of an epoch"
A_MIXTURE = "use MixtureSource({'web': web, 'code': code}, weights={'web': 0.7, 'code': 0.3})"


def mix(u, weights=WEIGHTS, **fields):
    parts = {"web": u.loaded, "code": u.loaded}
    return MixtureSource(**({"parts": parts, "weights": weights} | fields))


def later(u, **fields):
    """A mixture that has delivered some records."""
    source = mix(u, **fields)
    source.get_batch(8)
    return source


def other(u, **fields):
    """A part that is not the same in all of two mixtures."""
    return {"web": u.loaded, "code": u.eager(shuffle=True, **fields)}


def removed(u, *, then):
    """A mixture without the part `code`, after what is done `then`."""
    state = later(u).get_state()
    source = mix(u, parts={"web": u.loaded, "code": None}, epoch_records=state["records"])
    source.set_state(state)
    then(source)
    return source.get_batch(8)


def changed(source, digits):
    for epoch in range(1, 60):
        source.set_weights({"web": epoch + digits, "code": 1009 + digits}, at=Cursor(epoch, 0))


def stripped(u):
    return {"web": u.loaded, "code": u.eager(exclude_keys={"image"})}


def padded(u):
    return u.stream(name="text", include_keys={"tokens"}, pad_to={"tokens": 8})


ROWS = [
    Row(
        "weights must be a dict, with a number for each part.",
        EQUAL,
        lambda u: mix(u, [0.7, 0.3]),
        lambda u: mix(u, {"web": 1, "code": 1}),
    ),
    Row(
        "weights must have the names of the parts.",
        "use weights={'web': 0.7, 'code': 0.3}",
        lambda u: mix(u, {"web": 0.7, "cod": 0.3}),
        lambda u: mix(u, {"web": 0.7, "code": 0.3}),
    ),
    Row(
        "the weights must not all be zero.",
        EQUAL,
        lambda u: mix(u, {"web": 0, "code": 0}),
        lambda u: mix(u, {"web": 1, "code": 1}),
    ),
    Row(
        "the weight of 'web' must be a number, got str.",
        "use 'web': 1",
        lambda u: mix(u, {"web": "0.7", "code": 0.3}),
        lambda u: mix(u, {"web": 1, "code": 0.3}),
    ),
    Row(
        "the weight of 'web' must be finite, and at least 0.",
        "use 'web': 0 to leave the part out, or 'web': 1",
        lambda u: mix(u, {"web": float("nan"), "code": 0.3}),
        lambda u: mix(u, {"web": 0, "code": 0.3}),
        lambda u: mix(u, {"web": 1, "code": 0.3}),
    ),
    Row(
        "parts must be a dict of sources by name, got list.",
        A_MIXTURE,
        lambda u: mix(u, parts=[u.loaded]),
        mix,
    ),
    Row(
        "a mixture must have at least one part.",
        "use MixtureSource({'web': web}, weights={'web': 1})",
        lambda u: mix(u, {}, parts={}),
        lambda u: mix(u, {"web": 1}, parts={"web": u.loaded}),
    ),
    Row(
        "the name of a part must be made of letters, digits and the signs . : / + - _ only.",
        "use a name such as 'web'",
        lambda u: mix(u, {"a, b": 1}, parts={"a, b": u.loaded}),
        lambda u: mix(u, {"web": 1}, parts={"web": u.loaded}),
    ),
    Row(
        "the part 'web' must be an eager source, a stream or a PackedSource.",
        "pass sources, as from_tfds('mnist', 'train'); in place of a mixture, pass its parts; in"
        " place of a BucketedSource, pass a stream with pad_to",
        lambda u: mix(u, {"web": 1}, parts={"web": mix(u)}),
        lambda u: mix(u, parts=mix(u).parts),
        lambda u: mix(u, {"web": 1}, parts={"web": padded(u)}),
    ),
    Row(
        "all parts must have the same sharding.",
        "build every part with the same sharding=batch_sharding(mesh)",
        lambda u: mix(u, parts={"web": u.loaded, "code": u.eager("8 devices")}),
        mix,
    ),
    Row(
        "the records of 'web' and 'code' differ in 1 features.",
        "use include_keys or exclude_keys for features that both have, and a map_fn that gives"
        " them one dtype and shape",
        lambda u: mix(u, parts=stripped(u)),
        lambda u: mix(u, parts=dict.fromkeys(WEIGHTS, u.eager(exclude_keys={"image"}))),
    ),
    Row(
        "part_column must be the name of a new column.",
        "use part_column='part', or leave it out",
        lambda u: mix(u, part_column="label"),
        lambda u: mix(u, part_column="part"),
        mix,
    ),
    Row(
        "epoch_records must be a number of at least 1, or 'total', 'shortest' or 'longest'.",
        "use epoch_records='shortest'",
        lambda u: mix(u, epoch_records="shortes"),
        lambda u: mix(u, epoch_records="shortest"),
    ),
    Row(
        "with a removed part, epoch_records must be the number of the saved run.",
        "use epoch_records=state['records'], of the state to restore",
        lambda u: mix(u, parts={"web": u.loaded, "code": None}),
        lambda u: removed(u, then=lambda source: source.set_weights({"web": 1})),
    ),
    Row(
        "the weights of records that were already delivered cannot be changed.",
        "use a cursor from source.cursor on, or leave at out",
        lambda u: later(u).set_weights({"web": 1, "code": 1}, at=Cursor(0, 7)),
        lambda u: later(u).set_weights({"web": 1, "code": 1}, at=Cursor(0, 8)),
        lambda u: later(u).set_weights({"web": 1, "code": 1}),
    ),
    Row(
        "at must be a Cursor in an epoch.",
        A_CURSOR,
        lambda u: mix(u).set_weights(WEIGHTS, at=7),
        lambda u: mix(u).set_weights(WEIGHTS, at=Cursor(epoch=0, index=0)),
    ),
    Row(
        "the part 'code' was removed, but has a weight.",
        "call source.set_weights({'web': 1}), with weights for the parts that are left",
        lambda u: removed(u, then=lambda source: None),
        lambda u: removed(u, then=lambda source: source.set_weights({"web": 1})),
    ),
    Row(
        "these weights, and their changes, do not fit a state of 2 KB.",
        "use weights of fewer digits, or change them less often",
        lambda u: changed(mix(u), digits=10**8 + 8),
        lambda u: changed(mix(u), digits=0),
        lambda u: mix(u).set_weights({"web": 10**8 + 9, "code": 10**8 + 1007}),
    ),
    Row(
        "the saved run began with other weights.",
        "use weights={'web': 7, 'code': 3}, restore the state, and then call set_weights to"
        " change the weights from there on",
        lambda u: mix(u, {"web": 1, "code": 1}).set_state(later(u).get_state()),
        lambda u: mix(u, {"web": 7, "code": 3}).set_state(later(u).get_state()),
    ),
    Row(
        "an epoch of the saved mixture has another number of records.",
        "use epoch_records=50",
        lambda u: mix(u).set_state(later(u, epoch_records=50).get_state()),
        lambda u: mix(u, epoch_records=50).set_state(later(u, epoch_records=50).get_state()),
    ),
    Row(
        "the saved mixture has parts that this one has not: code.",
        "add the parts again; or, to go on without their records, add 'code': None to parts, and"
        " call set_weights after the state is restored",
        lambda u: mix(u, {"web": 1}, parts={"web": u.loaded}).set_state(later(u).get_state()),
        lambda u: mix(u).set_state(later(u).get_state()),
        lambda u: removed(u, then=lambda source: source.set_weights({"web": 1})),
    ),
    Row(
        "the part 'code' of the saved mixture and of this one differ in order.",
        "build the part 'code' as it was; or give it another name and weight 0, set 'code' to None,"
        " and call set_weights after the state is restored",
        lambda u: mix(u, parts=other(u, seed=6)).set_state(later(u).get_state()),
        lambda u: mix(u).set_state(later(u).get_state()),
        lambda u: replaced(u),
    ),
]


def replaced(u):
    state = later(u).get_state()
    parts = {"web": u.loaded, "code": None, "code-2": u.eager(shuffle=True, seed=6)}
    source = mix(u, WEIGHTS | {"code-2": 0}, parts=parts, epoch_records=state["records"])
    source.set_state(state)
    source.set_weights({"web": 7, "code-2": 3})
    return source.get_batch(8)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_fix_of_a_message_works_when_it_is_followed(row, user):
    row.follow(user)
