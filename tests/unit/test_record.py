"""Records beside the dictionaries that they stand for."""

from hypothesis import given
from hypothesis import strategies as st

from overlay.model.record import Record

documents = st.dictionaries(st.text(max_size=3), st.one_of(st.integers(), st.text()), max_size=4)


@given(documents, documents)
def test_record_is_what_the_dictionary_is(one: dict[str, object], other: dict[str, object]) -> None:
    record = Record(one)
    assert dict(record) == one
    assert (list(record.items()), repr(record)) == (list(one.items()), repr(one))
    assert len(record) == len(one)
    assert (record == Record(other)) == (one == other)
    for name in other:
        assert (record.get(name), name in record) == (one.get(name), name in one)


def test_names_are_kept_once_but_not_those_of_everybody() -> None:
    many = [Record({f"name {i}": i, "VNI": 1}) for i in range(1000)]
    assert [record["VNI"] for record in many] == [1] * 1000
    one, other = (
        Record(dict(zip(("VNI", "VtepMAC"), values, strict=True)))
        for values in ((1, "a"), (1, "b"))
    )
    assert all(mine is its for mine, its in zip(one, other, strict=True))
