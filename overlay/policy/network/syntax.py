"""What names, labels, ports and networks may look like, as the API server has it.

Source: ``k8s.io/apimachinery/pkg/util/validation``. Each function returns the
value or raises PolicyFormatError.
"""

import re
from ipaddress import IPv6Network, ip_network
from typing import Final

from overlay.model.address import IPNetwork
from overlay.policy.network.fields import Field

_LABEL: Final = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_DNS_LABEL: Final = re.compile(rf"{_LABEL}\Z")
_DNS_SUBDOMAIN: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\Z")
_QUALIFIED: Final = re.compile(r"(?:[A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]\Z")
_PORT_NAME: Final = re.compile(r"[-a-z0-9]{1,15}\Z")
_CIDR: Final = re.compile(r"[0-9A-Fa-f:.]+/[0-9]{1,3}\Z")
_LONGEST_LABEL, _LONGEST_SUBDOMAIN = 63, 253
_LAST_PORT: Final = 65535


def dns_label(field: Field) -> str:
    """Return a namespace's name (RFC 1123 label)."""
    text = field.text()
    if len(text) > _LONGEST_LABEL or not _DNS_LABEL.match(text):
        raise field.error(
            f"must be at most {_LONGEST_LABEL} of a-z, 0-9 and -, "
            "and begin and end with a letter or digit"
        )
    return text


def dns_subdomain(field: Field) -> str:
    """Return an object's name (RFC 1123 subdomain)."""
    text = field.text()
    if len(text) > _LONGEST_SUBDOMAIN or not _DNS_SUBDOMAIN.match(text):
        raise field.error(
            f"must be at most {_LONGEST_SUBDOMAIN} of a-z, 0-9, - and ., "
            "and begin and end with a letter or digit"
        )
    return text


def label_key(field: Field, key: object) -> str:
    """Return a label's key, ``[PREFIX/]NAME``; ``field`` is what it stands in."""
    text = key if isinstance(key, str) else ""
    prefix, slash, name = text.rpartition("/")
    if (
        not _is_qualified(name)
        or (slash and not prefix)
        or (prefix and (len(prefix) > _LONGEST_SUBDOMAIN or not _DNS_SUBDOMAIN.match(prefix)))
    ):
        problem = (
            f"the label key {ascii(key)[:80]} must be a name of at most {_LONGEST_LABEL} letters, "
            "digits, -, _ and ., with at most one DNS name and a / before it"
        )
        raise field.error(problem)
    return text


def label_value(field: Field) -> str:
    """Return a label's value; it may be empty."""
    text = field.text()
    if text and not _is_qualified(text):
        raise field.error(
            f"must be at most {_LONGEST_LABEL} letters, digits, -, _ and ., "
            "and begin and end with a letter or digit"
        )
    return text


def port_number(field: Field) -> int:
    """Return a port's number."""
    return field.integer(1, _LAST_PORT)


def port_name(field: Field) -> str:
    """Return the name of a container's port (IANA service name, RFC 6335)."""
    text = field.text()
    if text.isdecimal():
        raise field.error("a name of digits alone is none; a port's number stands without quotes")
    if (
        not _PORT_NAME.match(text)
        or not re.search(r"[a-z]", text)
        or "--" in text
        or text.startswith("-")
        or text.endswith("-")
    ):
        raise field.error(
            "a port's name must be at most 15 of a-z, 0-9 and -, with a letter among them, "
            "and no - at an end or beside another"
        )
    return text


def network(field: Field) -> IPNetwork:
    """Return a CIDR; bits behind the prefix are cleared, as the API server reads it.

    Its older releases also let leading zeros through and read them as decimal;
    who is not strict does so too.
    """
    text = field.text()
    problem = "must be a network such as 10.0.0.0/8 or fd00::/8, without zeros in front"
    if not _CIDR.match(text):
        raise field.error(problem)
    if not field.strict and ":" not in text:
        text = re.sub(r"(?<![0-9])0+(?=[0-9])", "", text)
    try:
        found = ip_network(text, strict=False)
    except ValueError as exc:
        raise field.error(problem) from exc
    if isinstance(found, IPv6Network) and found.network_address.ipv4_mapped is not None:
        raise field.error("an IPv4 network within IPv6 is ambiguous; write it as IPv4")
    return found


def _is_qualified(text: str) -> bool:
    return len(text) <= _LONGEST_LABEL and bool(_QUALIFIED.match(text))
