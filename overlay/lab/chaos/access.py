"""What happens to the subject's login at etcd. Rows of the group ``store``."""

import secrets
from typing import Final

from overlay.lab.chaos.agent import with_peers
from overlay.lab.chaos.cast import SUBJECT
from overlay.lab.chaos.fault import FROM_RETURN, Fault, Planted
from overlay.lab.chaos.stage import Stage
from overlay.lab.chaos.store import GROUP, TARGET_S, write_when_back

_FEW: Final = 30
_USER: Final = "root"  # etcd wants one of that name


def faults() -> list[Fault]:
    """Return the faults of a login; forwarding goes on through all of them."""
    return [
        Fault(
            "token forgotten by etcd, as one that ran out",
            GROUP,
            _token_gone,
            rounds=3,
            since=FROM_RETURN,
            is_lossless=True,
            target_s=TARGET_S,
        )
    ]


def _token_gone(stage: Stage) -> Planted:
    password = secrets.token_hex(8)
    stage.gateway.enable_auth(_USER, password)
    try:
        stage.restart(SUBJECT, f"--etcd-username={_USER}", f"--etcd-password={password}")
        made = with_peers(stage, _FEW)
        stage.etcd.stop()  # simple tokens are in the members' memory
        stage.etcd.start()
        planted = write_when_back(stage, list(made), (SUBJECT,))
    except BaseException:
        stage.gateway.disable_auth()
        raise

    def undo() -> None:
        planted.undo()
        stage.gateway.disable_auth()
        stage.restart(SUBJECT)

    return Planted(planted.right, planted.at, undo)
