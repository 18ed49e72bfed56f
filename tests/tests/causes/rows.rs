//! The planted causes.

use super::Row;

const EMPTY: Row = Row {
    name: "",
    needs: "",
    plant: "",
    differs: ("", ""),
    program: "",
    undo: "",
    trace: "",
    traffic: "",
    id: "dropped",
    mechanism: "",
    says: &[],
};

const TO_REMOTE: &str = "curl httpbin-remote:8080";
const TO_HTTPBIN: &str = "curl httpbin:8080";

pub const ROUTES: &[Row] = &[
    Row {
        name: "blackhole route on the node",
        plant: "node-1: ip route replace blackhole {}/32",
        differs: ("10.42.2.2", "10.42.2.99"),
        undo: "node-1: ip route del blackhole {}/32",
        trace: TO_REMOTE,
        mechanism: "refusing-route",
        says: &["on node-1", "`blackhole 10.42.2.2/32` of table main"],
        ..EMPTY
    },
    Row {
        name: "unreachable route on the node",
        plant: "node-1: ip route replace unreachable {}/32 table 77\nnode-1: ip rule add pref 77 lookup 77",
        differs: ("10.42.2.2", "10.42.2.99"),
        undo: "node-1: ip route flush table 77\nnode-1: ip rule del pref 77",
        trace: TO_REMOTE,
        mechanism: "refusing-route",
        says: &["on node-1", "`unreachable 10.42.2.2/32` of table 77"],
        ..EMPTY
    },
    Row {
        name: "prohibit route on the other node",
        plant: "node-2: ip route replace prohibit {}/32",
        differs: ("10.42.1.2", "10.42.1.99"),
        undo: "node-2: ip route del prohibit {}/32",
        trace: TO_REMOTE,
        mechanism: "refusing-route",
        says: &["reply", "on node-2", "`prohibit 10.42.1.2/32`"],
        ..EMPTY
    },
    Row {
        name: "policy rule on the node",
        plant: "node-1: ip rule add pref 78 to {} blackhole",
        differs: ("10.42.2.2", "10.42.2.99"),
        undo: "node-1: ip rule del pref 78",
        trace: TO_REMOTE,
        mechanism: "refusing-route",
        says: &["on node-1", "rule of policy routing"],
        ..EMPTY
    },
    Row {
        name: "no route on the node",
        plant: "node-1: ip route replace throw {}/32",
        differs: ("10.42.2.2", "10.42.2.99"),
        undo: "node-1: ip route del throw {}/32",
        trace: TO_REMOTE,
        mechanism: "no-route",
        says: &["on node-1", "no route to 10.42.2.2"],
        ..EMPTY
    },
    Row {
        name: "forwarding off",
        plant: "node-1: sysctl -qw net.ipv4.ip_forward={}",
        differs: ("0", "1"),
        undo: "node-1: sysctl -qw net.ipv4.ip_forward=1",
        trace: TO_REMOTE,
        mechanism: "forwarding-off",
        says: &["on node-1", "IP forwarding is off"],
        ..EMPTY
    },
    Row {
        name: "reverse path filter",
        plant: "node-2: ip route replace blackhole {}/32\nnode-2: sysctl -qw net.ipv4.conf.all.rp_filter=1",
        differs: ("10.42.1.2", "10.42.1.99"),
        undo: "node-2: ip route del blackhole {}/32\nnode-2: sysctl -qw net.ipv4.conf.all.rp_filter=0",
        trace: TO_REMOTE,
        mechanism: "reverse-path",
        says: &["on node-2", "no route back to 10.42.1.2", "rp_filter = 1"],
        ..EMPTY
    },
    Row {
        name: "source is an address of the other node",
        plant: "node-2: ip address add {}/32 dev lo",
        differs: ("10.42.1.2", "10.42.1.99"),
        undo: "node-2: ip address del {}/32 dev lo",
        trace: TO_REMOTE,
        mechanism: "martian",
        says: &["on node-2", "10.42.1.2 is an address of"],
        ..EMPTY
    },
    Row {
        name: "blackhole route in the pod",
        plant: "curl: ip route replace blackhole {}/32",
        differs: ("10.42.1.3", "10.42.1.99"),
        undo: "curl: ip route del blackhole {}/32",
        trace: TO_HTTPBIN,
        id: "probe-failed",
        mechanism: "refusing-route",
        says: &["Invalid argument", "`blackhole 10.42.1.3/32`"],
        ..EMPTY
    },
    Row {
        name: "prohibit rule in the pod",
        plant: "curl: ip rule add pref 78 to {} prohibit",
        differs: ("10.42.1.3", "10.42.1.99"),
        undo: "curl: ip rule del pref 78",
        trace: TO_HTTPBIN,
        id: "probe-failed",
        mechanism: "refusing-route",
        says: &["Permission denied", "rule of policy routing that says prohibit"],
        ..EMPTY
    },
    Row {
        name: "no route in the pod",
        plant: "curl: ip route replace throw {}/32",
        differs: ("10.42.1.3", "10.42.1.99"),
        undo: "curl: ip route del throw {}/32",
        trace: TO_HTTPBIN,
        id: "probe-failed",
        mechanism: "no-route",
        says: &["Network is unreachable", "no route to 10.42.1.3"],
        ..EMPTY
    },
    Row {
        name: "no free port in the pod",
        plant: "curl: sysctl -qw net.ipv4.ip_local_port_range='40000 40001'\ncurl: sysctl -qw net.ipv4.ip_local_reserved_ports={}",
        differs: ("40000-40001", "50000"),
        undo: "curl: sysctl -qw net.ipv4.ip_local_port_range='32768 60999'\ncurl: sysctl -qw net.ipv4.ip_local_reserved_ports=",
        trace: TO_HTTPBIN,
        id: "probe-failed",
        mechanism: "no-free-port",
        says: &["no free port", "40000"],
        ..EMPTY
    },
    Row {
        name: "broadcast address",
        differs: ("10.42.1.255", "10.42.1.3"),
        trace: "curl {}:8080 --protocol udp",
        id: "probe-failed",
        mechanism: "broadcast",
        says: &["Permission denied", "10.42.1.255 is a broadcast address"],
        ..EMPTY
    },
    Row {
        name: "ttl runs out",
        plant: "curl: sysctl -qw net.ipv4.ip_default_ttl={}",
        differs: ("1", "64"),
        undo: "curl: sysctl -qw net.ipv4.ip_default_ttl=64",
        trace: TO_REMOTE,
        says: &["on node-1", "TTL"],
        ..EMPTY
    },
];

pub const BRIDGES: &[Row] = &[
    Row {
        name: "hairpin mode off",
        plant: "node-1: ip link set $V type bridge_slave hairpin {}",
        differs: ("off", "on"),
        undo: "node-1: ip link set $V type bridge_slave hairpin on",
        trace: "httpbin svc/httpbin",
        mechanism: "hairpin-off",
        says: &["on node-1", "hairpin mode is off at $V"],
        ..EMPTY
    },
    Row {
        name: "port of the target disabled",
        plant: "node-1: bridge link set dev $V state {}",
        differs: ("0", "3"),
        undo: "node-1: bridge link set dev $V state 3",
        trace: TO_HTTPBIN,
        mechanism: "port-state",
        says: &["on node-1", "$V is disabled"],
        ..EMPTY
    },
    Row {
        name: "port of the source disabled",
        plant: "node-1: bridge link set dev $C state {}",
        differs: ("0", "3"),
        undo: "node-1: bridge link set dev $C state 3",
        trace: TO_HTTPBIN,
        mechanism: "port-state",
        says: &["on node-1", "$C is disabled"],
        ..EMPTY
    },
    Row {
        name: "isolated ports",
        plant: "node-1: bridge link set dev $C isolated on\nnode-1: bridge link set dev $V isolated {}",
        differs: ("on", "off"),
        undo: "node-1: bridge link set dev $C isolated off\nnode-1: bridge link set dev $V isolated off",
        trace: TO_HTTPBIN,
        mechanism: "port-isolated",
        says: &["on node-1", "$C and $V are isolated"],
        ..EMPTY
    },
    Row {
        name: "bridge without netfilter",
        plant: "node-1: sysctl -qw net.bridge.bridge-nf-call-iptables={}",
        differs: ("0", "1"),
        undo: "node-1: sysctl -qw net.bridge.bridge-nf-call-iptables=1",
        trace: "curl svc/httpbin",
        id: "untranslated-reply",
        says: &["on node-1", "bridge-nf-call-iptables"],
        ..EMPTY
    },
    Row {
        name: "small MTU of a port",
        plant: "node-1: ip link set $V mtu {}",
        differs: ("1000", "1500"),
        undo: "node-1: ip link set $V mtu 1500",
        trace: "curl httpbin:8080 --protocol udp",
        traffic: "curl: python3 -c 'import socket; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.settimeout(0.3); s.sendto(bytes(1400),(\"10.42.1.3\",8080)); s.recv(2000)'",
        mechanism: "mtu",
        says: &["on node-1", "MTU of $V is 1000"],
        ..EMPTY
    },
];

pub const NEIGHBOURS: &[Row] = &[
    Row {
        name: "neighbour without ARP",
        plant: "curl: sysctl -qw net.ipv4.neigh.eth0.retrans_time_ms=100\nhttpbin: ip link set eth0 arp {}\ncurl: ip neigh flush all",
        differs: ("off", "on"),
        undo: "httpbin: ip link set eth0 arp on\ncurl: sysctl -qw net.ipv4.neigh.eth0.retrans_time_ms=1000",
        trace: TO_HTTPBIN,
        mechanism: "neighbour-silent",
        says: &["in pod default/curl", "10.42.1.3 does not answer on eth0"],
        ..EMPTY
    },
    Row {
        name: "neighbour that ignores ARP",
        plant: "curl: sysctl -qw net.ipv4.neigh.eth0.retrans_time_ms=100\nhttpbin: sysctl -qw net.ipv4.conf.all.arp_ignore={}\ncurl: ip neigh flush all",
        differs: ("8", "0"),
        undo: "httpbin: sysctl -qw net.ipv4.conf.all.arp_ignore=0\ncurl: sysctl -qw net.ipv4.neigh.eth0.retrans_time_ms=1000",
        trace: TO_HTTPBIN,
        mechanism: "neighbour-silent",
        says: &["in pod default/curl", "10.42.1.3 does not answer on eth0"],
        ..EMPTY
    },
    Row {
        name: "wrong neighbour entry",
        plant: "curl: ip neigh replace {} lladdr 02:00:00:00:00:01 dev eth0 nud permanent",
        differs: ("10.42.1.3", "10.42.1.99"),
        undo: "curl: ip neigh del {} dev eth0",
        trace: TO_HTTPBIN,
        says: &["OTHERHOST"],
        ..EMPTY
    },
    Row {
        name: "device of the target down",
        plant: "node-1: ip link set $V {}",
        differs: ("down", "up"),
        undo: "node-1: ip link set $V up",
        trace: TO_HTTPBIN,
        says: &[],
        ..EMPTY
    },
];

pub const RULES: &[Row] = &[
    Row {
        name: "rule in the source's OUTPUT",
        plant: "curl: nft 'table inet planted { chain o { type filter hook output priority 0; tcp dport {} counter drop comment \"egress\"; }; }'",
        differs: ("8080", "9090"),
        undo: "curl: nft delete table inet planted",
        trace: TO_HTTPBIN,
        mechanism: "rule",
        says: &["in pod default/curl", "chain o of table inet planted", "egress"],
        ..EMPTY
    },
    Row {
        name: "rule in the source's OUTPUT makes send() fail",
        plant: "curl: nft 'table inet planted { chain o { type filter hook output priority 0; udp dport {} counter drop comment \"egress\"; }; }'",
        differs: ("8080", "9090"),
        undo: "curl: nft delete table inet planted",
        trace: "curl httpbin:8080 --protocol udp",
        mechanism: "rule",
        says: &["in pod default/curl", "chain o of table inet planted", "egress"],
        ..EMPTY
    },
    Row {
        name: "reject in the source's OUTPUT",
        plant: "curl: nft 'table inet planted { chain o { type filter hook output priority 0; tcp dport {} counter reject comment \"egress\"; }; }'",
        differs: ("8080", "9090"),
        undo: "curl: nft delete table inet planted",
        trace: TO_HTTPBIN,
        mechanism: "rule",
        says: &["in pod default/curl", "chain o of table inet planted", "egress"],
        ..EMPTY
    },
    Row {
        name: "rule in the target's INPUT",
        plant: "httpbin: nft 'table inet planted { chain i { type filter hook input priority 0; tcp dport {} counter drop; }; }'",
        differs: ("8080", "9090"),
        undo: "httpbin: nft delete table inet planted",
        trace: TO_HTTPBIN,
        mechanism: "rule",
        says: &["in pod default/httpbin", "chain i of table inet planted"],
        ..EMPTY
    },
    Row {
        name: "reject with a reset",
        plant: "node-1: nft 'table inet planted { chain f { type filter hook forward priority 0; tcp dport {} counter reject with tcp reset; }; }'",
        differs: ("8080", "9090"),
        undo: "node-1: nft delete table inet planted",
        trace: TO_HTTPBIN,
        mechanism: "rule",
        says: &["on node-1", "chain f of table inet planted"],
        ..EMPTY
    },
    Row {
        name: "blocklist in a set",
        plant: "node-1: nft 'table inet planted { set bad { type ipv4_addr; elements = { {} }; }; chain f { type filter hook forward priority 0; ip saddr @bad counter drop comment \"blocklist\"; }; }'",
        differs: ("10.42.1.2", "10.42.1.99"),
        undo: "node-1: nft delete table inet planted",
        trace: TO_HTTPBIN,
        mechanism: "rule",
        says: &["on node-1", "blocklist"],
        ..EMPTY
    },
    Row {
        name: "rule for replies only",
        plant: "node-1: nft 'table inet planted { chain f { type filter hook forward priority 0; ct direction reply tcp sport {} counter drop comment \"replies\"; }; }'",
        differs: ("8080", "9090"),
        undo: "node-1: nft delete table inet planted",
        trace: TO_HTTPBIN,
        mechanism: "rule",
        says: &["reply packet", "on node-1", "replies"],
        ..EMPTY
    },
    Row {
        name: "rule of the bridge family",
        plant: "node-1: nft 'table bridge planted { chain f { type filter hook forward priority 0; tcp dport {} counter drop comment \"bridged\"; }; }'",
        differs: ("8080", "9090"),
        undo: "node-1: nft delete table bridge planted",
        trace: TO_HTTPBIN,
        mechanism: "rule",
        says: &["on node-1", "table bridge planted", "bridged"],
        ..EMPTY
    },
    Row {
        name: "rule at a device's ingress",
        plant: "node-1: nft 'table netdev planted { chain d { type filter hook ingress device $C priority 0; tcp dport {} counter drop comment \"ingress\"; }; }'",
        differs: ("8080", "9090"),
        undo: "node-1: nft delete table netdev planted",
        trace: TO_HTTPBIN,
        mechanism: "rule",
        says: &["on node-1", "table netdev planted", "ingress"],
        ..EMPTY
    },
    Row {
        name: "rule for ICMP",
        plant: "node-1: iptables -I FORWARD -p icmp --icmp-type {} -j DROP",
        differs: ("echo-request", "timestamp-request"),
        undo: "node-1: iptables -D FORWARD -p icmp --icmp-type {} -j DROP",
        trace: "curl httpbin --protocol icmp",
        mechanism: "rule",
        says: &["on node-1", "chain FORWARD of table ip filter"],
        ..EMPTY
    },
    Row {
        name: "rule for UDP",
        plant: "node-1: iptables -I FORWARD -p udp --dport {} -j DROP",
        differs: ("8080", "9090"),
        undo: "node-1: iptables -D FORWARD -p udp --dport {} -j DROP",
        trace: "curl httpbin:8080 --protocol udp",
        mechanism: "rule",
        says: &["on node-1", "chain FORWARD of table ip filter"],
        ..EMPTY
    },
    Row {
        name: "rule of iptables-legacy for a port",
        plant: "node-1: iptables-legacy -A FORWARD -p tcp --dport {} -j DROP",
        differs: ("8080", "9090"),
        undo: "node-1: iptables-legacy -F FORWARD",
        trace: TO_HTTPBIN,
        mechanism: "rule",
        says: &["on node-1", "iptables-legacy", "chain FORWARD"],
        ..EMPTY
    },
];

pub const SHAPES: &[Row] = &[
    Row {
        name: "Docker: policy of FORWARD",
        plant: "node-1: iptables-restore --noflush <<END
 *filter
 :FORWARD {} [0:0]
 :DOCKER-USER - [0:0]
 :DOCKER-ISOLATION-STAGE-1 - [0:0]
 :DOCKER-ISOLATION-STAGE-2 - [0:0]
 -A FORWARD -j DOCKER-USER
 -A FORWARD -j DOCKER-ISOLATION-STAGE-1
 -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
 -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
 -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
 -A DOCKER-ISOLATION-STAGE-1 -j RETURN
 -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
 -A DOCKER-ISOLATION-STAGE-2 -j RETURN
 -A DOCKER-USER -j RETURN
 COMMIT
 END",
        differs: ("DROP", "ACCEPT"),
        undo: "node-1: iptables -P FORWARD ACCEPT
node-1: iptables -D FORWARD -j DOCKER-USER; iptables -D FORWARD -j DOCKER-ISOLATION-STAGE-1
node-1: iptables -D FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; iptables -D FORWARD -i docker0 ! -o docker0 -j ACCEPT",
        trace: TO_HTTPBIN,
        mechanism: "policy",
        says: &["on node-1", "policy of chain FORWARD, table ip filter"],
        ..EMPTY
    },
    Row {
        name: "firewalld: forward rejects",
        plant: "node-1: nft -f - <<END
 table inet firewalld {
  chain filter_FORWARD {
   type filter hook forward priority 10; policy accept;
   ct state { established, related } accept
   ct status dnat accept
   iifname \"lo\" accept
   ct state invalid drop
   jump filter_FORWARD_POLICIES
   counter reject with icmpx admin-prohibited
  }
  chain filter_FORWARD_POLICIES {
   ip saddr {} jump filter_FWD_trusted
  }
  chain filter_FWD_trusted { accept; }
 }
 END",
        differs: ("192.0.2.0/24", "10.42.0.0/16"),
        undo: "node-1: nft delete table inet firewalld",
        trace: TO_HTTPBIN,
        mechanism: "rule",
        says: &["on node-1", "chain filter_FORWARD of table inet firewalld"],
        ..EMPTY
    },
    Row {
        name: "ufw: forward not allowed",
        plant: "node-1: iptables-restore --noflush <<END
 *filter
 :ufw-before-forward - [0:0]
 :ufw-user-forward - [0:0]
 :ufw-after-logging-forward - [0:0]
 :ufw-reject-forward - [0:0]
 -A FORWARD -j ufw-before-forward
 -A FORWARD -j ufw-after-logging-forward
 -A FORWARD -j ufw-reject-forward
 -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
 -A ufw-before-forward -p icmp -m icmp --icmp-type 8 -j ACCEPT
 -A ufw-before-forward -j ufw-user-forward
 -A ufw-user-forward -p tcp -m tcp --dport {} -j ACCEPT
 -A ufw-reject-forward -j REJECT --reject-with icmp-port-unreachable
 COMMIT
 END",
        differs: ("22", "8080"),
        undo: "node-1: iptables -D FORWARD -j ufw-before-forward; iptables -D FORWARD -j ufw-after-logging-forward; iptables -D FORWARD -j ufw-reject-forward
node-1: for c in ufw-before-forward ufw-user-forward ufw-after-logging-forward ufw-reject-forward; do iptables -F $c; done
node-1: for c in ufw-before-forward ufw-user-forward ufw-after-logging-forward ufw-reject-forward; do iptables -X $c; done",
        trace: TO_HTTPBIN,
        mechanism: "rule",
        says: &["on node-1", "chain ufw-reject-forward of table ip filter", "FORWARD > ufw-reject-forward"],
        ..EMPTY
    },
    Row {
        name: "kube-proxy iptables: external traffic policy",
        plant: "node-1: iptables-restore --noflush <<END
 *filter
 :KUBE-PLANTED-SERVICES - [0:0]
 -I FORWARD 1 -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-PLANTED-SERVICES
 -A KUBE-PLANTED-SERVICES -d {}/32 -p tcp -m comment --comment \"ns/web:http has no endpoints\" -m tcp --dport 8080 -j REJECT
 COMMIT
 END",
        differs: ("10.42.1.3", "10.96.0.77"),
        undo: "node-1: iptables -D FORWARD 1; iptables -F KUBE-PLANTED-SERVICES; iptables -X KUBE-PLANTED-SERVICES",
        trace: TO_HTTPBIN,
        mechanism: "rule",
        says: &["on node-1", "ns/web:http has no endpoints", "FORWARD > KUBE-PLANTED-SERVICES"],
        ..EMPTY
    },
    Row {
        name: "kube-proxy nftables: no endpoints",
        plant: "node-1: nft -f - <<END
 table ip kube-proxy {
  map no-endpoint-services {
   type ipv4_addr . inet_proto . inet_service : verdict
   elements = { {} . tcp . 80 comment \"ns/web:http\" : goto reject-chain }
  }
  chain reject-chain { counter reject; }
  chain filter-prerouting {
   type filter hook prerouting priority -110; policy accept;
   ct state new jump service-endpoints-check
  }
  chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
 }
 END",
        differs: ("10.96.0.10", "10.96.0.77"),
        undo: "node-1: nft delete table ip kube-proxy",
        trace: "curl svc/httpbin",
        mechanism: "rule",
        says: &["on node-1", "chain reject-chain of table ip kube-proxy", "service-endpoints-check"],
        ..EMPTY
    },
    Row {
        name: "Calico: policy of the pod",
        plant: "node-1: iptables-restore --noflush <<END
 *filter
 :cali-FORWARD - [0:0]
 :cali-tw-x - [0:0]
 :cali-pi-x - [0:0]
 -I FORWARD 1 -j cali-FORWARD
 -A cali-FORWARD -d 10.42.1.3/32 -j cali-tw-x
 -A cali-tw-x -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
 -A cali-tw-x -m conntrack --ctstate INVALID -j DROP
 -A cali-tw-x -j MARK --set-xmark 0x0/0x20000
 -A cali-tw-x -j cali-pi-x
 -A cali-tw-x -m mark --mark 0x20000/0x20000 -j RETURN
 -A cali-tw-x -m mark --mark 0x0/0x20000 -m comment --comment \"no policy passed\" -j DROP
 -A cali-pi-x -p tcp -m multiport --dports {} -j MARK --set-xmark 0x20000/0x20000
 COMMIT
 END",
        differs: ("9999", "8080"),
        undo: "node-1: iptables -D FORWARD 1
node-1: for c in cali-FORWARD cali-tw-x cali-pi-x; do iptables -F $c; done; for c in cali-FORWARD cali-tw-x cali-pi-x; do iptables -X $c; done",
        trace: TO_HTTPBIN,
        mechanism: "rule",
        says: &["on node-1", "no policy passed", "FORWARD > cali-FORWARD > cali-tw-x"],
        ..EMPTY
    },
    Row {
        name: "Cilium and AWS VPC CNI: chains that do nothing, and a rule that does",
        plant: "node-1: iptables-restore --noflush <<END
 *mangle
 -A PREROUTING -i eth0 -m comment --comment \"AWS, primary ENI\" -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-xmark 0x80/0x80
 -A PREROUTING -i eni+ -m comment --comment \"AWS, primary ENI\" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
 COMMIT
 *nat
 :AWS-SNAT-CHAIN-0 - [0:0]
 -A POSTROUTING -m comment --comment \"AWS SNAT CHAIN\" -j AWS-SNAT-CHAIN-0
 -A AWS-SNAT-CHAIN-0 -d 10.42.0.0/16 -m comment --comment \"AWS SNAT CHAIN\" -j RETURN
 COMMIT
 *filter
 :CILIUM_FORWARD - [0:0]
 -A FORWARD -m comment --comment \"cilium-feeder: CILIUM_FORWARD\" -j CILIUM_FORWARD
 -A CILIUM_FORWARD -o cilium_host -m comment --comment \"cilium: any->cluster on cilium_host forward accept\" -j ACCEPT
 -A CILIUM_FORWARD -i lxc+ -j ACCEPT
 -I FORWARD 1 -p tcp -m tcp --dport {} -m comment --comment \"planted\" -j DROP
 COMMIT
 END",
        differs: ("8080", "9090"),
        undo: "node-1: iptables -D FORWARD 1; iptables -t mangle -F PREROUTING
node-1: iptables -D FORWARD -m comment --comment 'cilium-feeder: CILIUM_FORWARD' -j CILIUM_FORWARD; iptables -F CILIUM_FORWARD; iptables -X CILIUM_FORWARD
node-1: iptables -t nat -D POSTROUTING -m comment --comment 'AWS SNAT CHAIN' -j AWS-SNAT-CHAIN-0; iptables -t nat -F AWS-SNAT-CHAIN-0; iptables -t nat -X AWS-SNAT-CHAIN-0",
        trace: TO_HTTPBIN,
        mechanism: "rule",
        says: &["on node-1", "(planted)"],
        ..EMPTY
    },
];

pub const TRANSLATIONS: &[Row] = &[
    Row {
        name: "translated elsewhere",
        plant: "node-1: nft 'table ip planted { chain pre { type nat hook prerouting priority -150; ip daddr 10.42.1.3 tcp dport {} dnat to 10.42.2.2:8080 comment \"elsewhere\"; }; }'",
        differs: ("8080", "9090"),
        undo: "node-1: nft delete table ip planted",
        trace: TO_HTTPBIN,
        id: "unexpected-dnat",
        says: &["10.42.2.2:8080", "on node-1"],
        ..EMPTY
    },
    Row {
        name: "replies without connection tracking",
        plant: "node-1: iptables -t raw -I PREROUTING -p tcp --sport {} -j CT --notrack",
        differs: ("8080", "9090"),
        undo: "node-1: iptables -t raw -D PREROUTING -p tcp --sport {} -j CT --notrack",
        trace: "curl svc/httpbin",
        id: "untranslated-reply",
        says: &["on node-1", "notrack"],
        ..EMPTY
    },
    Row {
        name: "Service without endpoints",
        differs: ("empty", "httpbin"),
        trace: "curl svc/{}:80",
        id: "no-endpoints",
        says: &["Service default/empty"],
        ..EMPTY
    },
    Row {
        name: "source translated to a foreign address",
        plant: "node-1: iptables -t nat -I POSTROUTING -s 10.42.1.2 -d {} -j SNAT --to-source 192.0.2.1",
        differs: ("10.42.2.2", "10.42.2.99"),
        undo: "node-1: iptables -t nat -D POSTROUTING -s 10.42.1.2 -d {} -j SNAT --to-source 192.0.2.1",
        trace: TO_REMOTE,
        id: "vanished",
        mechanism: "neighbour-silent",
        says: &["reply", "`node neighbour lookup` on node-2"],
        ..EMPTY
    },
    Row {
        name: "entry of connection tracking that no rule names",
        plant: "node-1: nft 'table ip planted { chain pre { type nat hook prerouting priority -150; ip daddr 10.96.0.10 udp dport {} dnat to 10.42.2.2:8080; }; }'
curl: python3 -c 'import socket; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind((\"\",502{})); s.settimeout(1); s.sendto(b\"x\"*20,(\"10.96.0.10\",80)); s.recv(100)'
node-1: nft delete table ip planted",
        differs: ("80", "81"),
        trace: "curl svc/httpbin --protocol udp",
        traffic: "curl: python3 -c 'import socket; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind((\"\",502{})); s.settimeout(1); s.sendto(b\"x\"*20,(\"10.96.0.10\",80)); s.recv(100)'",
        id: "stale-translation",
        says: &["10.96.0.10:80", "10.42.2.2:8080", "on node-1"],
        ..EMPTY
    },
    Row {
        name: "redirect to a sidecar that does not listen",
        plant: "curl: iptables -t nat -A OUTPUT -p tcp --dport {} -j REDIRECT --to-ports 15001",
        differs: ("8080", "9090"),
        undo: "curl: iptables -t nat -D OUTPUT -p tcp --dport {} -j REDIRECT --to-ports 15001",
        trace: TO_HTTPBIN,
        id: "dropped",
        says: &["NO_SOCKET", "in pod default/curl"],
        ..EMPTY
    },
];

pub const TRANSPORT: &[Row] = &[
    Row {
        name: "closed port of the node itself",
        plant: "node-1: python3 -c 'import socket,os,time
 l=socket.socket(); l.setsockopt(1,2,1); l.bind((\"\",7070)); l.listen()
 if os.fork(): os._exit(0)
 os.setsid(); os.close(1); os.close(2); l.settimeout(3); s,a=l.accept(); s.recv(1000); s.sendall(b\"HTTP/1.0 200 OK\\r\\n\\r\\n\"); s.close()'",
        differs: ("7071", "7070"),
        trace: "curl 10.42.1.1:{}",
        says: &["NO_SOCKET", "on node-1"],
        ..EMPTY
    },
    Row { name: "closed port", differs: ("9", "8080"), trace: "curl httpbin:{}", says: &["NO_SOCKET", "in pod default/httpbin"], ..EMPTY },
    Row {
        name: "closed UDP port",
        differs: ("9", "8080"),
        trace: "curl httpbin:{} --protocol udp",
        says: &["NO_SOCKET", "in pod default/httpbin"],
        ..EMPTY
    },
    Row {
        name: "echo requests are ignored",
        plant: "httpbin: sysctl -qw net.ipv4.icmp_echo_ignore_all={}",
        differs: ("1", "0"),
        undo: "httpbin: sysctl -qw net.ipv4.icmp_echo_ignore_all=0",
        trace: "curl httpbin --protocol icmp",
        id: "no-reply",
        says: &[],
        ..EMPTY
    },
    Row {
        name: "connection still open at the target",
        plant: "curl: python3 -c 'import socket,struct
 s=socket.socket(); s.setsockopt(1,2,1); s.bind((\"\",{})); s.connect((\"10.42.1.3\",8080))
 s.setsockopt(6,19,1) if {}==50123 else s.setsockopt(1,13,struct.pack(\"ii\",1,0))
 s.close()'",
        differs: ("50123", "50124"),
        trace: TO_HTTPBIN,
        traffic: "curl: curl -s -m 3 -o /dev/null --local-port {} http://10.42.1.3:8080/",
        id: "connection-still-open",
        says: &["in pod default/httpbin", "challenge ACK"],
        ..EMPTY
    },
    Row {
        name: "TIME_WAIT at the target",
        plant: "curl: sysctl -qw net.ipv4.tcp_timestamps=0
httpbin: python3 -c 'import socket,os
 l=socket.socket(); l.setsockopt(1,2,1); l.bind((\"\",9050)); l.listen()
 if os.fork(): os._exit(0)
 os.setsid(); os.close(1); os.close(2); l.settimeout(30); n={}*(1<<22)+1
 s,a=l.accept()
 while n: n-=len(s.recv(min(n,1<<20)))
 s.close()
 s,a=l.accept(); s.recv(100); s.send(b\"x\"); s.close()'
curl: python3 -c 'import socket
 s=socket.socket(); s.setsockopt(1,2,1); s.bind((\"\",50200)); s.connect((\"10.42.1.3\",9050)); b=bytes(1<<22)
 for i in range({}): s.sendall(b)
 s.sendall(b\"x\"); s.recv(1)'",
        differs: ("100", "0"),
        undo: "curl: sysctl -qw net.ipv4.tcp_timestamps=1",
        trace: "curl httpbin:9050",
        // The client waits until the server has closed: otherwise its own port would be in TIME_WAIT and not free in the next run.
        traffic: "curl: python3 -c 'import socket
 s=socket.socket(); s.setsockopt(1,2,1); s.bind((\"\",50200)); s.settimeout(5); s.connect((\"10.42.1.3\",9050)); s.send(b\"x\")
 while s.recv(1): pass'",
        id: "time-wait",
        says: &["in pod default/httpbin", "TIME_WAIT", "sequence number", "at a socket in state TIME_WAIT"],
        ..EMPTY
    },
    Row {
        name: "TIME_WAIT at the target, by timestamp",
        plant: "httpbin: python3 -c 'import socket,os
 l=socket.socket(); l.setsockopt(1,2,1); l.bind((\"\",9060)); l.listen()
 if os.fork(): os._exit(0)
 os.setsid(); os.close(1); os.close(2); l.settimeout(30)
 s,a=l.accept(); s.recv(1); s.close()'",
        differs: ("-100000", "100000"),
        trace: "curl httpbin:9060",
        // A SYN as another client behind the same address sends it, from the port of a connection that the target has closed.
        traffic: "curl: python3 -c 'import socket,struct
 s=socket.socket(); s.setsockopt(1,2,1); s.bind((\"\",50300)); s.connect((\"10.42.1.3\",9060)); s.send(b\"x\"); s.recv(1)
 stamp=(s.getsockopt(6,24)+({}))%(1<<32); s.shutdown(1)
 while s.getsockopt(6,11,1)!=b\"\\7\": pass
 r=socket.socket(socket.AF_INET,socket.SOCK_RAW,6); r.settimeout(3)
 tcp=struct.pack(\">HHIIBBHHHBBBBII\",50300,9060,1,0,128,2,1000,0,0,1,1,8,10,stamp,0)
 whole=socket.inet_aton(\"10.42.1.2\")+socket.inet_aton(\"10.42.1.3\")+struct.pack(\">HH\",6,len(tcp))+tcp
 n=sum(struct.unpack(\">%dH\"%(len(whole)//2),whole)); n=(n&65535)+(n>>16); n=(n&65535)+(n>>16)
 r.sendto(tcp[:16]+struct.pack(\">H\",65535-n)+tcp[18:],(\"10.42.1.3\",0))
 while 1:
  p=r.recv(200); p=p[(p[0]&15)*4:]
  if p[:2]==struct.pack(\">H\",9060): break'",
        id: "time-wait",
        says: &["in pod default/httpbin", "TIME_WAIT", "timestamp", "TCP_RFC7323_TW_PAWS"],
        ..EMPTY
    },
    Row {
        name: "SYN cookies",
        plant: "httpbin: sysctl -qw net.ipv4.tcp_syncookies={}",
        differs: ("2", "1"),
        undo: "httpbin: sysctl -qw net.ipv4.tcp_syncookies=1",
        trace: TO_HTTPBIN,
        traffic: "curl: curl -s -m 3 -o /dev/null http://10.42.1.3:8080/",
        id: "syn-cookies",
        says: &["in pod default/httpbin", "cookies"],
        ..EMPTY
    },
    Row {
        name: "queue of half-open connections full",
        plant: "httpbin: sysctl -qw net.ipv4.tcp_syncookies=0
httpbin: python3 -c 'import socket,os,time
 l=socket.socket(); l.setsockopt(1,2,1); l.bind((\"\",907{})); l.listen(2)
 if os.fork(): os._exit(0)
 os.setsid(); os.close(1); os.close(2); time.sleep(6)'
curl: python3 -c 'import socket,struct
 r=socket.socket(socket.AF_INET,socket.SOCK_RAW,255)
 for port in range({}):
  tcp=struct.pack(\">HHIIBBHHH\",20000+port,907{},1,0,80,2,1000,0,0)
  ends=socket.inet_aton(\"10.42.1.77\")+socket.inet_aton(\"10.42.1.3\"); whole=ends+struct.pack(\">HH\",6,20)+tcp
  n=sum(struct.unpack(\">16H\",whole)); n=(n&65535)+(n>>16); n=(n&65535)+(n>>16)
  ip=struct.pack(\">BBHHHBBH\",69,0,40,0,0,64,6,0)+ends
  r.sendto(ip+tcp[:16]+struct.pack(\">H\",65535-n)+tcp[18:],(\"10.42.1.3\",0))'",
        differs: ("8", "0"),
        undo: "httpbin: sysctl -qw net.ipv4.tcp_syncookies=1",
        trace: "curl httpbin:907{}",
        traffic: "curl: python3 -c 'import socket; s=socket.socket(); s.settimeout(1); s.connect_ex((\"10.42.1.3\",907{}))'",
        id: "syn-queue-full",
        says: &["in pod default/httpbin", "half-open"],
        ..EMPTY
    },
    Row {
        name: "reader that does not read",
        // It begins to read when nothing more comes: its window is closed then, however late the writer got a CPU.
        plant: "httpbin: python3 -c 'import socket,os,time
 import array,fcntl,termios
 def unread():
  n=array.array(\"i\",[0]); fcntl.ioctl(s,termios.FIONREAD,n); return n[0]
 l=socket.socket(); l.setsockopt(1,2,1); l.setsockopt(1,8,8192); l.bind((\"\",9000)); l.listen()
 if os.fork(): os._exit(0)
 os.setsid(); os.close(1); os.close(2); l.settimeout(15)
 s,a=l.accept(); before=-1; end=time.time()+5
 while {} and time.time()<end and (unread()==0 or unread()!=before): before=unread(); time.sleep(0.5)
 while s.recv(65536): pass'",
        differs: ("1", "0"),
        trace: "curl httpbin:9000",
        traffic: "curl: python3 -c 'import socket; s=socket.create_connection((\"10.42.1.3\",9000)); s.sendall(bytes(200000)); s.shutdown(1); s.recv(1)'",
        id: "zero-window",
        says: &["in pod default/httpbin"],
        ..EMPTY
    },
    Row {
        name: "CPU limit",
        needs: "/sys/fs/cgroup/cpu/cgroup.procs",
        plant: "httpbin: python3 -c 'import socket,os,time
 l=socket.socket(); l.setsockopt(1,2,1); l.bind((\"\",9030)); l.listen()
 root=\"/sys/fs/cgroup/cpu\"; own=f\"{root}/planted-{os.getpid()}\"; os.mkdir(own)
 put=lambda path,text: open(path,\"w\").write(str(text))
 put(own+\"/cpu.cfs_quota_us\",{}); put(own+\"/cgroup.procs\",os.getpid())
 if os.fork(): os._exit(0)
 os.setsid(); os.close(1); os.close(2); l.settimeout(15)
 def work():
  end=time.process_time()+0.01
  while time.process_time()<end: pass
 try:
  s,a=l.accept()
  while s.recv(100): work(); s.send(b\"x\")
 finally: put(root+\"/cgroup.procs\",os.getpid()); os.rmdir(own)'",
        differs: ("2000", "-1"),
        trace: "curl httpbin:9030",
        traffic: "curl: python3 -c 'import socket; s=socket.create_connection((\"10.42.1.3\",9030)); [(s.send(b\"x\"),s.recv(1)) for i in range(3)]'",
        id: "cpu-throttled",
        says: &["in pod default/httpbin"],
        ..EMPTY
    },
    Row {
        name: "full accept queue",
        plant: "httpbin: python3 -c 'import socket,os,time
 l=socket.socket(); l.setsockopt(1,2,1); l.bind((\"\",{})); l.listen({}-9110)
 if os.fork(): os._exit(0)
 os.setsid(); os.close(1); os.close(2); time.sleep(4)'",
        differs: ("9110", "9126"),
        trace: "curl httpbin:{}",
        traffic: "curl: python3 -c 'import socket; c=[socket.socket() for i in range(4)]; [s.setblocking(False) for s in c]; [s.connect_ex((\"10.42.1.3\",{})) for s in c]; import time; time.sleep(1.2)'",
        id: "backlog-overflow",
        says: &["in pod default/httpbin"],
        ..EMPTY
    },
    Row {
        name: "full receive buffer of a datagram socket",
        plant: "httpbin: python3 -c 'import socket,os,time
 s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.setsockopt(1,8,2304 if {}==9020 else 1000000); s.bind((\"\",{}))
 if os.fork(): os._exit(0)
 os.setsid(); os.close(1); os.close(2); time.sleep(3)'",
        differs: ("9020", "9021"),
        trace: "curl httpbin:{} --protocol udp",
        traffic: "curl: python3 -c 'import socket,time; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); [s.sendto(bytes(1000),(\"10.42.1.3\",{})) for i in range(10)]; time.sleep(0.3)'",
        says: &["SOCKET_RCVBUFF", "in pod default/httpbin"],
        ..EMPTY
    },
];

pub const PROGRAMS: &[Row] = &[
    Row {
        name: "program at tc",
        program: "tc",
        differs: ("2", "0"),
        undo: "httpbin: tc qdisc del dev eth0 clsact",
        trace: TO_HTTPBIN,
        says: &["reply", "TC_EGRESS", "in pod default/httpbin"],
        ..EMPTY
    },
    Row {
        name: "program at XDP",
        program: "xdp",
        differs: ("1", "2"),
        undo: "httpbin: ip link set eth0 xdpgeneric off",
        trace: TO_HTTPBIN,
        says: &["XDP", "in pod default/httpbin"],
        ..EMPTY
    },
    Row {
        name: "program at the control group",
        program: "cgroup",
        differs: ("0", "1"),
        trace: TO_HTTPBIN,
        traffic: "curl: curl -s -m 1 -o /dev/null http://10.42.1.3:8080/",
        mechanism: "cgroup-program",
        says: &["BPF_CGROUP_EGRESS", "in pod default/curl", "planted_cause (id ", "cgroup_skb/egress"],
        ..EMPTY
    },
    Row {
        name: "program refuses to send",
        program: "cgroup",
        differs: ("0", "1"),
        trace: "curl httpbin:8080 --protocol udp",
        mechanism: "cgroup-program",
        says: &["BPF_CGROUP_EGRESS", "in pod default/curl", "planted_cause (id "],
        ..EMPTY
    },
    Row {
        name: "program refuses connect()",
        program: "connect",
        differs: ("0", "1"),
        trace: TO_HTTPBIN,
        id: "probe-failed",
        mechanism: "cgroup-program",
        says: &["Operation not permitted", "planted_cause (id ", "cgroup/connect4", "EPERM"],
        ..EMPTY
    },
    Row {
        name: "program refuses sendto()",
        program: "sendto",
        differs: ("0", "1"),
        trace: "curl httpbin:8080 --protocol udp",
        id: "probe-failed",
        mechanism: "cgroup-program",
        says: &["Operation not permitted", "planted_cause (id ", "cgroup/sendmsg4", "sendto() fails with EPERM"],
        ..EMPTY
    },
    Row {
        name: "program refuses connect() of a UDP socket",
        program: "connect",
        differs: ("0", "1"),
        trace: "curl httpbin:8080 --protocol udp",
        id: "probe-failed",
        mechanism: "cgroup-program",
        says: &["Operation not permitted", "planted_cause (id ", "cgroup/connect4"],
        ..EMPTY
    },
    Row {
        name: "queue that is full",
        plant: "node-1: tc qdisc add dev $V root tbf rate {} burst 1600 limit 3000",
        differs: ("100kbit", "1gbit"),
        undo: "node-1: tc qdisc del dev $V root",
        trace: "curl httpbin:8080 --protocol udp",
        traffic: "curl: python3 -c 'import socket,time; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); [s.sendto(bytes(1000),(\"10.42.1.3\",8080)) for i in range(20)]; time.sleep(0.7)'",
        says: &["QDISC_DROP", "on node-1", "$V"],
        ..EMPTY
    },
];
