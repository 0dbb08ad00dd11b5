"""What is made out of records that cannot be read; whatever they hold, nothing is raised."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.agent.salvage import salvage
from overlay.model.attachment import Attachment, AttachmentKey

WHOLE = json.dumps(
    Attachment(AttachmentKey("fabric", "one", "eth0"), "/run/netns/pod", (), "opod1").to_json()
).replace('"addresses": []', '"addresses": ["10.1.0.2", "fd00::2"]')


@pytest.mark.parametrize(
    ("text", "addresses", "link"),
    [
        pytest.param(WHOLE, "10.1.0.2 fd00::2", "opod1", id="whole"),
        pytest.param(WHOLE[: WHOLE.index("fd00")], "10.1.0.2", None, id="cut off"),
        pytest.param(WHOLE.replace("10.1.0.2", "10.1.0.256"), "fd00::2", "opod1", id="one bad"),
        pytest.param(json.dumps(json.loads(WHOLE), indent=4), "10.1.0.2 fd00::2", "opod1", id="in"),
        pytest.param('{"addresses": "10.1.0.2"}', "", None, id="another type"),
        pytest.param("", "", None, id="empty"),
    ],
)
def test_what_can_be_made_out(text: str, addresses: str, link: str | None) -> None:
    found = salvage(text.encode())
    assert (" ".join(map(str, found.addresses)), found.link) == (addresses, link)


@given(st.binary() | st.integers(0, len(WHOLE)).map(lambda n: WHOLE[:n].encode()))
def test_nothing_is_raised(content: bytes) -> None:
    salvage(content)


@given(st.integers(0, len(WHOLE)), st.binary(min_size=1, max_size=4))
def test_damage_behind_the_addresses_hides_none(place: int, junk: bytes) -> None:
    start = WHOLE.index('"link"')
    cut = max(start, place)
    damaged = WHOLE[:cut].encode() + junk + WHOLE[cut:].encode()
    assert len(salvage(damaged).addresses) == 2
