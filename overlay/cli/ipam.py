"""``ipam list``, ``check`` and ``release``: which pod has which address of this node's subnet."""

import os
from argparse import Namespace
from typing import Any

from overlay.cli import shapes
from overlay.cli.control import call
from overlay.cli.flags import Parser, socket_path, with_output
from overlay.cli.out import Output
from overlay.cli.watch import watchable


def add_parser(commands: Any) -> None:
    """Add the group."""
    about = "the addresses of this node's pods"
    group: Parser = commands.add_parser("ipam", help=about, description=about)
    verbs = group.add_subparsers(required=True, metavar="VERB", dest="verb")
    about = "every attachment, and how full the subnet is"
    verb: Parser = verbs.add_parser("list", help=about, description=about)
    watchable(verb, with_output(show_list))
    about = "addresses without a pod and pods without an address; status 1 when there are any"
    verb = verbs.add_parser("check", help=about, description=about)
    watchable(verb, with_output(show_check))
    about = "detach a container's interfaces and free their addresses, or remove stray links"
    verb = verbs.add_parser("release", help=about, description=about)
    which = verb.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "container", metavar="CONTAINER", nargs="?", help="the runtime's container id, whole"
    )
    which.add_argument(
        "--strays",
        action="store_true",
        help="instead: the links that no attachment is known for (`ipam check` names them); a pod "
        "behind one loses it",
    )
    verb.set_defaults(run=with_output(release))


def show_list(args: Namespace, out: Output) -> int:
    """Print the attachments."""
    result = call(socket_path(args), "ipam", like=shapes.IPAM)
    rows = [
        [
            a["addresses"],
            a["container"][:13],
            a["interface"],
            _pod(a),
            a["link"] or "(addresses alone)",
            "" if a["live"] and a["complete"] else "stale",
        ]
        for a in result["attachments"]
    ]
    out.table(("ADDRESSES", "CONTAINER", "INTERFACE", "POD", "LINK", "STATE"), rows, result)
    if out.is_table:
        for span in result["ranges"]:
            out.line(f"{span['network']}: {span['used']} of {span['count']} in use")
    return 0


def show_check(args: Namespace, out: Output) -> int:
    """Print what does not fit together; return 1 when anything does not."""
    result = call(socket_path(args), "ipam", like=shapes.IPAM)
    findings = [
        f"{', '.join(a['addresses'])}: {a['interface']} of container {a['container']} is gone; "
        f"`overlayctl ipam release {a['container']}` frees them"
        for a in result["attachments"]
        if not a["live"]
    ]
    findings += [
        f"{', '.join(a['addresses'])}: {a['sandbox']}, the namespace of container "
        f"{a['container']}, is gone; `overlayctl ipam release {a['container']}` frees them"
        for a in result["attachments"]
        if a["live"] and not a["link"] and not _is_namespace(a.get("sandbox"))
    ]
    findings += [
        f"{name}: no attachment is known for this link; `overlayctl ipam release --strays` "
        "removes it"
        for name in result["strays"]
    ]
    if not out.is_table:
        out.document({"findings": findings})
    else:
        for line in findings or ["in step"]:
            out.line(line)
    return 1 if findings else 0


def release(args: Namespace, out: Output) -> int:
    """Release a container's attachments, or stray links; return 1 when there are none."""
    wanted = {"strays": True} if args.strays else {"container": args.container}
    result = call(socket_path(args), "ipam-release", wanted, like=shapes.RELEASED)
    if not out.is_table:
        out.document(result)
    else:
        for a in result["released"]:
            out.line(f"released {', '.join(a['addresses'])} of {a['interface']}")
        for name in result["links"]:
            out.line(f"removed link {name}")
        if not result["released"] and not result["links"]:
            none = (
                "no link is stray"
                if args.strays
                else f"container {args.container} has no attachment"
            )
            out.line(f"{none} here")
    return 0 if result["released"] or result["links"] else 1


def _is_namespace(sandbox: object) -> bool:
    """Return whether a namespace lies at ``sandbox``; the kernel gives all of them one device.

    Addresses that another plugin uses have no link of ours that would tell.
    """
    if not isinstance(sandbox, str) or not sandbox:
        return True  # a runtime that told none: nothing can be said
    try:
        return os.stat(sandbox).st_dev == os.stat("/proc/self/ns/net").st_dev  # noqa: PTH116
    except OSError:
        return False


def _pod(attachment: dict[str, Any]) -> str:
    arguments = attachment["arguments"]
    parts = (arguments.get("K8S_POD_NAMESPACE"), arguments.get("K8S_POD_NAME"))
    return "/".join(str(part) for part in parts if part)
