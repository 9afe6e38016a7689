//! Who else uses the bits of the packet mark: an agent that would reroute pods refuses to start, and says whom to ask.

use super::shop;

/// As kube-proxy, the portmap plugin and Flannel write them, and as a tunnel marks its own packets.
const HARMLESS: [&str; 7] = [
    "nft add table ip t",
    "nft add chain ip t c '{ type filter hook postrouting priority 0; }'",
    "nft add rule ip t c meta mark set meta mark or 0x4000",
    "nft add rule ip t c meta mark and 0x4000 == 0 return",
    "nft add rule ip t c meta mark set meta mark xor 0x4000",
    "ip rule add fwmark 0x4000/0x4000 lookup main",
    "ip rule add not fwmark 0xca6c lookup main",
];

/// What the agent must name, and how it is made and taken away.
const CONFLICTS: [(&str, &str, &str); 4] = [
    (
        "IPv4 routing rule with priority 5210",
        "ip rule add pref 5210 fwmark 0x80000/0xff0000 lookup main",
        "ip rule del pref 5210",
    ),
    (
        "IPv6 routing rule with priority 5230",
        "ip -6 rule add pref 5230 fwmark 0x1000000/0x1000000 lookup main",
        "ip -6 rule del pref 5230",
    ),
    (
        "nftables rule inet theirs marker",
        "nft add table inet theirs && nft add chain inet theirs marker && nft add rule inet theirs marker meta mark set 7",
        "nft delete table inet theirs",
    ),
    (
        "nftables rule ip mangle PREROUTING",
        "iptables-nft -t mangle -A PREROUTING -j MARK --set-xmark 0x40000/0xff0000",
        "iptables-nft -t mangle -F",
    ),
];

#[test]
fn an_agent_whose_bits_of_the_mark_are_in_use_refuses_and_names_the_user() {
    let mut site = shop(&[]);
    for line in HARMLESS {
        let _out = site.on_node(line);
    }
    for (name, add, remove) in CONFLICTS {
        let _out = site.on_node(add);
        let refusal = site.try_agent(&[]);
        assert!(refusal.contains(name) && refusal.contains("--mark-mask"), "{name}: {refusal}");
        let _out = site.on_node(remove);
    }
    // What has just been refused leaves nothing behind: nothing was pinned, nothing attached.
    assert!(!site.on_node("ls /sys/fs/bpf").contains("netpol"));
    site.start_agent();
    site.settle();
}

#[test]
fn another_mask_gets_out_of_the_way() {
    let mut site = shop(&["--mark-mask", "0x01fffe00"]);
    let _out = site.on_node("ip rule add fwmark 0x80000000/0xe0000000 lookup main");
    site.start_agent();
    site.settle();
    site.expect("stranger", "server", &netpol_testbed::probe::Outcome::Deny);
}
