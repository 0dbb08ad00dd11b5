"""What ``overlayd`` does before the rest of it is loaded."""

import subprocess
import sys
from typing import Final

_AGENT: Final = """
import sys
from overlay.agent import program
program._leave_openssl_out()
import overlay.agent.main, overlay.store.etcd, overlay.kernel.netlink
"""
_HEAPS: Final = """
import ctypes, os, threading
kept, done = [], threading.Barrier(5)
def keep():
    kept.append([bytes(1000) for _ in range(100)])
    done.wait()
for _ in range(4):
    threading.Thread(target=keep, daemon=True).start()
done.wait()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info(0, ctypes.c_void_p(libc.fdopen(1, b"w")))
libc.fflush(None)
"""
_HAS_OPENSSL: Final = 'print("libcrypto" in open("/proc/self/maps").read())'


def printed(script: str) -> list[str]:
    done = subprocess.run(
        (sys.executable, "-c", script), capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_the_agent_of_etcd_is_loaded_without_openssl() -> None:
    assert printed(_AGENT + _HAS_OPENSSL) == ["False"]


def test_a_backend_is_found_without_what_reads_whole_distributions() -> None:
    script = (
        "from overlay.plan.registry import load_backend\n"
        "from overlay.model.network import parse_network_config\n"
        "from overlay.model.node import NodeIdentity\n"
        'config = parse_network_config(\'{"Network": "10.0.0.0/8"}\')\n'
        "load_backend(config, NodeIdentity('n1', 'n1'))\n"
        "print(sorted({'email', 'importlib.metadata', 'shutil', 'zipfile'} & set(sys.modules)))"
    )

    assert printed(_AGENT + script) == ["[]"]


def test_threads_share_one_heap() -> None:
    def heaps(script: str) -> int:
        return sum(line.startswith("<heap") for line in printed(script))

    one = "from overlay.agent import program; program._keep_one_heap()"
    assert heaps(_HEAPS) > 1
    assert heaps(one + _HEAPS) == 1


def test_whoever_needs_ssl_still_gets_it() -> None:
    script = f"{_AGENT}import ssl; ssl.create_default_context(); {_HAS_OPENSSL}"

    assert printed(script) == ["True"]


def test_hashes_and_seals_are_the_same_without_openssl() -> None:
    script = (
        "import hashlib, hmac\n"
        'print(hashlib.sha256(b"m").hexdigest(), hashlib.blake2b(b"m").hexdigest(),'
        ' hmac.new(b"k", b"m", "sha256").hexdigest(),'
        ' hmac.compare_digest(b"m", b"m"))'
    )

    assert printed(_AGENT + script) == printed(script)
