//! IP addresses and CIDRs as the API server reads them in fields that predate strict checking (`ParseIPSloppy`,
//! `ParseCIDRSloppy`; KEP-4858): leading zeros are ignored and the number is decimal, host bits are masked, and an
//! IPv4-mapped IPv6 address means the IPv4 one. `std` refuses the first and would keep the last apart, so a policy that
//! has been in force for years would lose a peer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A CIDR and its prefix length as written: validation compares what was written, which for an IPv4-mapped CIDR counts
/// 96 bits more than its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WrittenCidr {
    /// What it means, host bits masked.
    pub(super) net: IpNet,
    /// Prefix length as written.
    pub(super) written_prefix: u8,
}

/// Reads an address; IPv4-mapped ones become IPv4. Zones are refused, as the API does.
#[must_use]
pub fn parse_address(text: &str) -> Option<IpAddr> {
    Some(match parse_ipv4(text) {
        Some(address) => IpAddr::V4(address),
        None => IpAddr::V6(parse_ipv6(text)?).to_canonical(),
    })
}

/// Reads a CIDR; host bits are masked and IPv4-mapped ones become IPv4.
#[must_use]
pub fn parse_cidr(text: &str) -> Option<IpNet> {
    parse_written_cidr(text).map(|cidr| cidr.net)
}

pub(super) fn parse_written_cidr(text: &str) -> Option<WrittenCidr> {
    let (address, prefix) = text.split_once('/')?;
    let written_prefix = decimal(prefix, 128)?;
    let net = match parse_ipv4(address) {
        Some(address) => IpNet::V4(Ipv4Net::new(address, written_prefix).ok()?.trunc()),
        None => {
            let net = Ipv6Net::new(parse_ipv6(address)?, written_prefix).ok()?.trunc();
            // Only after masking: a prefix that cuts into ::ffff:0:0/96 leaves an ordinary IPv6 block.
            match (net.network().to_ipv4_mapped(), written_prefix.checked_sub(96)) {
                (Some(address), Some(prefix)) => IpNet::V4(Ipv4Net::new(address, prefix).ok()?),
                _ => IpNet::V6(net),
            }
        }
    };
    Some(WrittenCidr { net, written_prefix })
}

/// Decimal digits, any number of leading zeros, up to `maximum`.
fn decimal(text: &str, maximum: u8) -> Option<u8> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = text.trim_start_matches('0');
    let number = if digits.is_empty() { 0 } else { digits.parse::<u8>().ok()? };
    (number <= maximum).then_some(number)
}

fn parse_ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut parts = text.split('.');
    let mut octets = [0; 4];
    for octet in &mut octets {
        *octet = decimal(parts.next()?, 255)?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

fn parse_ipv6(text: &str) -> Option<Ipv6Addr> {
    let (head, tail) = match text.split_once("::") {
        // A dotted part ends an address, so it cannot stand before "::".
        Some((head, _)) if head.contains('.') => return None,
        Some((head, tail)) => (groups(head)?, Some(groups(tail)?)),
        None => (groups(text)?, None),
    };
    let mut all = [0_u16; 8];
    match tail {
        None => all = head.try_into().ok()?,
        // "::" stands for at least one group.
        Some(tail) if head.len() + tail.len() <= 7 => {
            all.get_mut(..head.len())?.copy_from_slice(&head);
            all.get_mut(8 - tail.len()..)?.copy_from_slice(&tail);
        }
        Some(_) => return None,
    }
    Some(Ipv6Addr::from(all))
}

/// Groups of one side of "::", the last of which may be an IPv4 address.
fn groups(text: &str) -> Option<Vec<u16>> {
    let mut groups = Vec::new();
    if text.is_empty() {
        return Some(groups);
    }
    let parts: Vec<&str> = text.split(':').collect();
    for (index, part) in parts.iter().enumerate() {
        if groups.len() > 8 {
            return None;
        }
        if part.contains('.') {
            if index + 1 != parts.len() {
                return None;
            }
            let [a, b, c, d] = parse_ipv4(part)?.octets();
            groups.extend([u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]);
        } else {
            groups.push(hexadecimal(part)?);
        }
    }
    Some(groups)
}

fn hexadecimal(text: &str) -> Option<u16> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let digits = text.trim_start_matches('0');
    if digits.is_empty() { Some(0) } else { u16::from_str_radix(digits, 16).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Option<String> {
        parse_cidr(text).map(|net| net.to_string())
    }

    #[test]
    fn b3_host_bits_are_masked() {
        let table = [
            ("10.10.1.12/24", "10.10.1.0/24"),
            ("10.244.3.7/4", "0.0.0.0/4"),
            ("2001:db8::1/64", "2001:db8::/64"),
            ("192.0.2.1/32", "192.0.2.1/32"),
            ("255.255.255.255/0", "0.0.0.0/0"),
        ];
        for (written, meant) in table {
            assert_eq!(cidr(written).as_deref(), Some(meant), "{written}");
        }
    }

    #[test]
    fn b4_leading_zeros_are_decimal() {
        let table = [
            ("010.000.000.0/8", "10.0.0.0/8"),
            ("10.0.0.010/32", "10.0.0.10/32"),
            ("0010.0.0.0/08", "10.0.0.0/8"),
            ("2001:00db8::/0032", "2001:db8::/32"),
        ];
        for (written, meant) in table {
            assert_eq!(cidr(written).as_deref(), Some(meant), "{written}");
        }
        assert_eq!(parse_address("010.1.002.3"), Some("10.1.2.3".parse().unwrap()));
    }

    #[test]
    fn b4_ipv4_mapped_is_ipv4_unless_the_prefix_cuts_into_the_marker() {
        let table = [
            ("::ffff:1.2.3.0/120", "1.2.3.0/24"),
            ("::ffff:0102:0304/128", "1.2.3.4/32"),
            ("::ffff:010.0.0.1/104", "10.0.0.0/8"),
            ("::ffff:1.2.3.4/96", "0.0.0.0/0"),
            ("::ffff:1.2.3.4/95", "::fffe:0:0/95"),
            ("::/0", "::/0"),
        ];
        for (written, meant) in table {
            assert_eq!(cidr(written).as_deref(), Some(meant), "{written}");
        }
        assert_eq!(parse_address("::ffff:10.0.0.1"), Some("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn b4_what_the_api_server_refuses_is_refused() {
        for bad in [
            "",
            "/",
            "10.0.0.0",
            "10.0.0.0/",
            "/8",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.0.0/8",
            "10.0.0.0.0/8",
            "10.0.0.256/8",
            "10..0.0/8",
            " 10.0.0.0/8",
            "10.0.0.0/8 ",
            "10.0.0.0/8/8",
            "::/129",
            "1::2::3/64",
            ":::/0",
            "1:2:3:4:5:6:7/64",
            "1:2:3:4:5:6:7:8:9/64",
            "1:2:3:4:5:6:7::8/64",
            "1.2.3.4::/64",
            "1:1.2.3.4:2::/64",
            "fe80::1%eth0/64",
            "10000::/16",
            "g::/16",
            "0x10.0.0.0/8",
            "999999999999999999999.0.0.0/8",
            "::/99999999999",
        ] {
            assert_eq!(cidr(bad), None, "{bad}");
        }
        for bad in ["", "None", "10.0.0.1/32", "fe80::1%eth0", "1.2.3", "::1.2.3", ":", "1:2:3:4:5:6:7:8:"] {
            assert_eq!(parse_address(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_canonical_ipv6_form_is_read_as_std_reads_it() {
        for text in [
            "::",
            "::1",
            "1::",
            "1:2:3:4:5:6:7:8",
            "1:2::7:8",
            "fe80::a:b",
            "64:ff9b::192.0.2.1",
            "1:2:3:4:5:6:192.0.2.1",
        ] {
            assert_eq!(parse_address(text), Some(text.parse().unwrap()), "{text}");
        }
    }
}
