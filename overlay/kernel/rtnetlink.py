"""Numbers and layouts of rtnetlink that requests and answers share.

Sources: linux/rtnetlink.h (rtmsg, rtattr), linux/neighbour.h (ndmsg),
linux/if_addr.h (ifaddrmsg), linux/fib_rules.h (fib_rule_hdr).
"""

import struct
from typing import Final

AF_BRIDGE: Final = 7

RTMSG: Final = struct.Struct("=BBBBBBBBI")
NDMSG: Final = struct.Struct("=BBHiHBB")
IFADDRMSG: Final = struct.Struct("=BBBBI")
RULE: Final = struct.Struct("=BBBBBBBBI")

RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_TABLE = 1, 4, 5, 6, 15
IP6_RT_PRIO_USER: Final = 1024  # net/ip6_route.h: the metric of a route that names none
RTN_UNICAST, RTN_UNREACHABLE = 1, 7
RTNH_F_ONLINK: Final = 4
NDA_DST, NDA_LLADDR, NDA_PORT, NDA_VNI, NDA_IFINDEX, NDA_NH_ID = 1, 2, 6, 7, 8, 13
NUD_NOARP, NUD_PERMANENT = 0x40, 0x80
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
FRA_SRC, FRA_PRIORITY, FRA_TABLE, FRA_PROTOCOL = 2, 6, 15, 21
